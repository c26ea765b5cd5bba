"""Trains the tiny model of the embedded benchmark from nothing on two CPU cores.

`python -m scripts.train_embedded --out DIR` runs every stage; `recipe` holds all its numbers.
"""

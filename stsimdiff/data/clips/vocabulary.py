"""Every word that the clips can show or ask for, with the colours in which they are painted.

Nothing here draws or asks; world, questions, tokenizer and training all read the same lists.
"""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 225, 50),
    "orange": (245, 140, 30),
    "purple": (150, 50, 190),
    "cyan": (60, 220, 225),
    "white": (245, 245, 245),
}
COLOR_NAMES = tuple(COLORS)
STATIC_SHAPES = ("circle", "square", "triangle", "diamond", "ring")
FLASH_SHAPES = ("star", "cross", "heart", "moon", "bolt")
DIRECTIONS = ("up", "down", "left", "right")
CORNERS = ("northwest", "northeast", "southwest", "southeast")
NUMBERS = ("1", "2", "3", "4")
PLACES = ("desert", "forest", "ocean", "city", "cave", "snow")

# Clutter has no word and is never asked for.
CLUTTER_SHAPES = ("brick", "stripe", "stone", "leaf", "check")

ANSWER_WORDS = (*COLOR_NAMES, *FLASH_SHAPES, *DIRECTIONS, *CORNERS, *NUMBERS, *PLACES)

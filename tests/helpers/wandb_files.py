"""What W&B's offline files hold."""

from __future__ import annotations

import json
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record, RunRecord
from wandb.sdk.internal.datastore import DataStore


def records(place: str) -> list[Record]:
    (path,) = Path(place).glob("run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    found = []
    while (data := store.scan_data()) is not None:
        found.append(Record.FromString(data))
    store.close()
    return found


def header(found: list[Record]) -> RunRecord:
    return next(record.run for record in found if record.WhichOneof("record_type") == "run")


def summary(found: list[Record]) -> dict:
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in found
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }


def history(found: list[Record]) -> dict:
    (line,) = (record.history for record in found if record.WhichOneof("record_type") == "history")
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in line.item}

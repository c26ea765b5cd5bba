"""Which files of a checkpoint loading reads, what they are together, and what they say about generation.

Looks at files only and imports no torch.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from stsimdiff.data.digests import file_digest, say_what_takes_long
from stsimdiff.errors import DataError
from stsimdiff.files import fingerprint
from stsimdiff.models.info import info
from stsimdiff.models.presence import tower_file

TEXTS = re.compile(
    r"(config|generation_config|adapter_config)\.json"
    r"|(processor_config|preprocessor_config|image_processor_config|video_preprocessor_config)\.json"
    r"|tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|[^.].*\.(model|tiktoken|jinja)|chat_template\.json"
)
"""What transformers reads beside the weights: configurations, tokenizer, processor, chat template."""
TEMPLATES = "additional_chat_templates"
STRAY = re.compile(
    r"\..*|.*\.(md|log|out|err|lock|png|jpg|gitattributes)|LICENSE.*|events\.out\..*|runs|wandb|logs"
    r"|(trainer_state|all_results|train_results|eval_results)\.json|training_args\.bin|trainer_log\.jsonl"
    r"|(optimizer|scheduler|scaler|rng_state).*\.(pt|pth|bin|safetensors)|checkpoint-\d+|global_step\d+"
    r"|__pycache__|nohup.*"
)
"""What a training leaves beside a checkpoint. A family of a user's own may read anything else."""
GENERATION = (
    "eos_token_id", "min_length", "min_new_tokens", "stop_strings", "renormalize_logits",
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "sequence_bias", "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty",
)  # fmt: skip
"""What of a checkpoint's generation settings changes a greedy answer: those that ``stsimdiff.models.base`` keeps."""
NEUTRAL_ONE = ("repetition_penalty", "encoder_repetition_penalty")
"""Factors, of which 1 changes nothing; of all others that is what is empty, 0 or false."""


def files_read(folder: Path, family: str, trusted: bool = False, is_own: bool = False) -> dict[str, Path]:
    """The files that loading a checkpoint reads, by a name that does not depend on where the folder lies.

    Args:
        folder: the checkpoint.
        family: its model family.
        trusted: whether code of the checkpoint runs.
        is_own: whether the family is a user's own: then every file counts that is no trace of a training.
    """
    if is_own:
        files: dict[Any, Any] = {}
        for part in (folder, *sorted(file.parent for file in folder.glob("*/config.json"))):
            if part == folder or not STRAY.fullmatch(part.name):
                files |= {
                    file.relative_to(folder).as_posix(): file
                    for file in part.iterdir()
                    if file.is_file() and not STRAY.fullmatch(file.name)
                }
        return files
    chosen = []
    for part in (folder, *(folder / name for name in info(family).parts)):
        if not part.is_dir():
            continue
        chosen += [file for file in part.iterdir() if TEXTS.fullmatch(file.name)]
        chosen += (part / TEMPLATES).glob("*.jinja")
        chosen += _weights(part)
        if trusted:
            # The checkpoint's modules may lie in packages.
            chosen += [file for file in part.rglob("*.py") if not _hidden(file.relative_to(part))]
    files = {file.relative_to(folder).as_posix(): file for file in chosen if file.is_file()}
    if info(family).tower:
        tower = tower_file(folder, str(_json(folder / "config.json").get("mm_vision_tower")))
        files |= {"vision_tower_config.json": tower} if tower else {}
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _weights(folder: Path) -> list[Path]:
    """The files that transformers takes the weights from, in its own order: no other ``.safetensors`` is opened."""
    named = _json(folder / "config.json").get("transformers_weights")
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    first = folder / str(named) if named else whole if whole.is_file() else index
    files = [first, *folder.glob("adapter_model.safetensors")]
    if first.name.endswith(".index.json"):
        shards = _json(first).get("weight_map")
        files += [folder / str(name) for name in set(shards.values())] if isinstance(shards, dict) else []
    return files


def checkpoint_version(folder: Path, family: str, trusted: bool = False, is_own: bool = False) -> str:
    """12 hex digits that change with the content of any file that loading reads; see :func:`files_read`.

    Raises:
        DataError: for a file that cannot be read.
    """
    files = files_read(folder, family, trusted, is_own)
    say_what_takes_long(files.values(), f"the checkpoint {folder}")
    try:
        parts = [[name, file_digest(file)] for name, file in sorted(files.items())]
    except OSError as error:
        raise DataError(f"model.path={folder}: cannot read {error.filename}: {error.strerror}") from error
    return fingerprint(parts)


def generation(folder: Path, family: str) -> dict[str, Any]:
    """What of a checkpoint's own generation settings changes greedy answers, in the order of :data:`GENERATION`.

    The stock class reads ``generation_config.json``; without that file, what an old ``config.json`` says of generation.
    """
    folder = folder / "llm" if "llm" in info(family).parts else folder
    values = _json(folder / "generation_config.json")
    if not values:
        config = _json(folder / "config.json")
        text = config.get("text_config")
        values = {**config, **(text if isinstance(text, dict) else {})}
    return {name: values[name] for name in GENERATION if name in values and not _neutral(name, values[name])}


def _neutral(name: str, value: Any) -> bool:
    if name == "eos_token_id":
        return value is None
    return not value or (name in NEUTRAL_ONE and value == 1)


def _json(file: Path) -> dict[str, Any]:
    """What a file says; nothing where it is absent or broken, which loading reports."""
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}

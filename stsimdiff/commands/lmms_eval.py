"""The model that lmms-eval's own command loads: ``--model stsimdiff --model_args compressor=st_simdiff,retention=0.3``.

It is one arm of the same session that ``python -m stsimdiff`` runs, with the same store and the same arm ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from stsimdiff.commands.lmms_command import ending, tell
from stsimdiff.config.arms import Arm, arm_from_config
from stsimdiff.config.model import ModelSettings
from stsimdiff.config.settings import Settings, budget_from_config, settings_from_config
from stsimdiff.config.task_files import asked_generation
from stsimdiff.errors import ConfigError, MissingParts, RunFailed, UserError
from stsimdiff.evaluate.passes import Pass, absent_weights
from stsimdiff.evaluate.questions import Question, question_from
from stsimdiff.evaluate.run import answer_missing
from stsimdiff.evaluate.scoring import score
from stsimdiff.evaluate.session import Session
from stsimdiff.evaluate.store import checked_answers
from stsimdiff.kit.rehearsal import rehearse
from stsimdiff.resources import folder
from stsimdiff.schema import settable

manifest = ModelManifest(model_id="stsimdiff", chat_class_path="stsimdiff.commands.lmms_eval.StSimDiff")

MODEL_KEYS = set(settable(ModelSettings)) - {"name", "prompts"}
RUN_KEYS = (
    "run",
    "results",
    "data",
    "seed",
    "retry_failed",
    "max_failures",
    "sample_seconds",
    "reuse_prefix",
)


class StSimDiff(lmms):
    """A compressor on a model family, for lmms-eval.

    Args:
        compressor: name of the method; of one of your own its dotted path, as ``my_module.Mine``.
        retention: budget in (0, 1].
        budget: ``tokens`` or ``compute``.
        model: name of a file of ``configs/model``.
        batch_size: must be 1; a sample's answer never depends on another.
        others: ``path, family, device, dtype, attn_implementation, frames, threads ...`` of the model; ``run, results,
            data, seed, retry_failed, max_failures, sample_seconds, reuse_prefix``; every parameter of the compressor;
            and any other setting by its whole name, such as ``benchmark.data``, or ``compressor.frames`` of a method
            with a parameter that is named as one of these.

    Raises:
        SystemExit: with code 2 and a message for an unknown name, a value out of range, or a method that cannot work,
            before anything is loaded.
    """

    is_simple = False

    def __init__(
        self,
        compressor: str = "none",
        retention: float = 1.0,
        budget: str = "tokens",
        model: str = "embedded",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        with ending():
            if str(batch_size) not in ("1", "auto") or str(max_batch_size) not in ("None", "1"):
                raise ConfigError(f"batch_size={batch_size} is not supported; allowed: 1")
            tell(others.get("data"), others.get("benchmark.data"))
        overrides = [
            f"compressor={compressor}",
            f"budget={budget}",
            f"budget.retention={retention}",
            f"model={model}",
        ]
        overrides.append("run=lmms_eval" if "run" not in others else f"run={others['run']}")
        others = {**others, **({"device": device} if device else {})}
        for key, value in others.items():
            if key != "run":
                known = key in RUN_KEYS or "." in key
                prefix = "model." if key in MODEL_KEYS else "" if known else "compressor."
                overrides.append(f"{prefix}{key}={value}")
        self.overrides = overrides
        # The benchmark, and with it the arm's id, is known only once lmms-eval brings questions.
        self._check(overrides)
        self.session: Session | None = None

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> StSimDiff:
        """As lmms-eval's own, for arguments that are ``key=value`` and given once."""
        with ending():
            flags = {key: value for key, value in (additional_config or {}).items() if value is not None}
            words = [word for word in _words(arg_string) if word.strip()]
            keys = [word.partition("=")[0].strip() for word in words]
            for word, key in zip(words, keys, strict=True):
                if not key or "=" not in word:
                    raise ConfigError(f"--model_args: {word!r} is no key=value; several are joined by commas")
                if keys.count(key) > 1 or key in flags:
                    raise ConfigError(f"--model_args: {key} is given twice; write it once, here or as a flag")
            # As text: lmms-eval's parser would turn a run named 2024_11_25 into a number, and -1 into -1.0.
            values = [word.partition("=")[2].strip() for word in words]
            arguments: dict[str, Any] = dict(zip(keys, values, strict=True))
            return cls(**arguments, **flags)

    def _check(
        self, overrides: list[str], task: Any = None, generation: Mapping[str, Any] | None = None
    ) -> tuple[Settings, Arm]:
        """Settings and arm of these overrides, and of the generation settings that lmms-eval gives with questions."""
        from hydra.core.global_hydra import GlobalHydra

        from stsimdiff.launchers.base import configurations

        GlobalHydra.instance().clear()
        with ending(overrides):
            config, *more = configurations(overrides)
            if more:
                raise ConfigError("--model_args names one arm; sweep with python -m stsimdiff -m instead")
            budget_from_config(config)  # also where the method has no budget
            settings = settings_from_config(config)
            if absent := absent_weights([config]):
                raise MissingParts(absent)
            if generation is not None:
                limits = _generation(generation, settings.benchmark.generation, task)
                benchmark = dataclasses.replace(settings.benchmark, generation=limits)
                settings = dataclasses.replace(settings, benchmark=benchmark)
            arm = arm_from_config(config, settings)
            if generation is None:
                rehearse([Pass(settings, {arm.id: arm}, 0)])
            return settings, arm

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer all requests; each answer is stored at once, and what is stored already is not asked again.

        Raises:
            SystemExit: with code 1 when a sample failed or most answers of a task give no letter, 2 for refusals.
                lmms-eval would turn an exception into exit code 0, and neither must be scored.
        """
        with ending(self.overrides):
            return self._generated(requests)

    def _generated(self, requests: list[Instance]) -> list[str]:
        by_task: dict[str, list[tuple[Any, Question]]] = {}
        generations: dict[str, Mapping[str, Any]] = {}
        for request in requests:
            _, doc_to_messages, generation, number, task_name, split = request.args
            task = doc_to_messages.__self__
            document = self.task_dict[task_name][split][number]
            generations.setdefault(task_name, generation)
            by_task.setdefault(task_name, []).append(
                (task, question_from(task, document, number, generation))
            )
        answers: dict[tuple[str, str], str] = {}
        self.unread: list[str] = []
        for task_name, pairs in by_task.items():
            questions = [question for _, question in pairs]
            answers.update(self._answer(task_name, pairs[0][0], questions, generations[task_name]))
        keys = [(name, question.id) for name, pairs in by_task.items() for _, question in pairs]
        missing = [key for key in keys if key not in answers]
        if missing:
            raise SystemExit(
                f"stsimdiff: {len(missing)} of {len(keys)} samples failed, first {missing[0][1]!r}; nothing is scored. "
                'The reasons are in the stored answers under "error"; retry_failed=true asks them again.'
            )
        if self.unread:
            raise RunFailed("\n".join(self.unread))
        return [answers[key] for key in keys]

    def _answer(
        self, name: str, task: Any, questions: list[Question], generation: Mapping[str, Any]
    ) -> dict[tuple[str, str], str]:
        # lmms-eval has built the task, and so chosen the prompt, before it asks this model anything.
        settings, arm = self._check(
            [
                *self.overrides,
                f"benchmark={_benchmark_of(name)}",
                f"benchmark.prompt={getattr(task, 'prompt', 'default')}",
            ],
            task,
            generation,
        )
        if settings.benchmark.server:
            raise ConfigError(
                f"{name} has no public answers to score here; python -m stsimdiff "
                f"benchmark={settings.benchmark.name} writes the file of predictions for the server that has them"
            )
        answer_missing(settings, task, [arm], questions, open_session=self._open)
        self.unread += score(settings, task, [arm], questions).unread
        rows = checked_answers(settings.folder / arm.folder)
        return {(name, row["id"]): row["answer"] for row in rows if row["error"] is None}

    def _open(self, settings: Settings) -> Session:
        # Loaded once, for all tasks of an evaluation and for the evaluations after it.
        if self.session is None:
            self.session = Session(settings)
        # Another task has its own decoder, and its own end of an answer.
        self.session.settings = self.session.features.settings = settings
        return self.session

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the harness compares generated answers."""
        with ending():
            raise UserError(
                "stsimdiff answers generate_until tasks only; choose a task whose output_type is that"
            )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered, as :meth:`loglikelihood`."""
        with ending():
            raise UserError(
                "stsimdiff answers generate_until tasks only; choose a task whose output_type is that"
            )

    def clean(self) -> None:
        """Keep the model: lmms-eval calls this after each evaluation, and a second one must still find it."""


def _words(arguments: str) -> list[str]:
    """The arguments, taken apart at the commas outside lists: ``methods=[fastv,my_module.Mine]`` is one."""
    words: list[str] = []
    for piece in arguments.split(","):
        if words and sum(words[-1].count(sign) for sign in "[{") > sum(
            words[-1].count(sign) for sign in "]}"
        ):
            words[-1] += f",{piece}"
        else:
            words.append(piece)
    return words


def _generation(requested: Mapping[str, Any], stored: Mapping[str, Any], task: Any) -> dict[str, Any]:
    """How long answers may be, as a task says it or ``--gen_kwargs``; raises as :func:`asked_generation`."""
    keys = dict(requested)
    # Where a task's file says no text that ends an answer, lmms-eval fills in the one between its examples.
    if not stored["until"] and keys.get("until") in (None, [task.config.fewshot_delimiter]):
        keys.pop("until", None)
    return asked_generation(keys, "--gen_kwargs")


def _benchmark_of(task: str) -> str:
    """The file of ``configs/benchmark`` that names this task. Raises :class:`ConfigError` if none does."""
    from omegaconf import OmegaConf

    for file in sorted((folder("configs") / "benchmark").glob("[!_]*.yaml")):
        config: Any = OmegaConf.load(file)
        if config.get("task") == task:
            return file.stem
    raise ConfigError(
        f"no file of configs/benchmark has task: {task}; add one to run it with --model stsimdiff"
    )

"""A callback that has the model answer the same prompts during training, and logs how often the answers are faulty."""

import logging
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from ...hooks.sharded import is_sharded
from ...languages import canonical_language
from ...measure.answers.prompts import read_prompts
from ...measure.faults.loops import MIN_TOKENS
from . import record
from .rates import HIGHER_IS_BETTER, JUDGES, Judge, as_metrics, choose_judges, rates_of
from .sampling import Sampling, WatchedPrompts
from .stopping import Patience
from .table import print_watch
from .trackers import send_answers
from .trainer_engine import TrainerEngine

logger = logging.getLogger(__name__)

ENGINES = ("transformers", "vllm")
_LOOPS = ("endless", "near_loop")


class FaultWatchCallback(TrainerCallback):
    """
    Has the model answer the same prompts with the same seeds during training, and logs how often the answers are
    faulty. It works with every trainer of TRL.

    ```python
    trainer = SFTTrainer(model, args, train_dataset=data, eval_dataset=held_out)
    trainer.add_callback(FaultWatchCallback("prompts.jsonl", trainer=trainer))
    ```

    Each watch gives `watch/NAME`, a rate from 0 to 1, with `watch/NAME_low` and `watch/NAME_high`, the ends of its
    95 % Wilson interval, for each fault:

    - `switched`: the answer has characters of another script that nothing excuses ([`find_switches`]);
    - `endless`: an exact loop goes on until the answer was cut ([`find_loop`]);
    - `near_loop`: so does a loop in which a little changes each time;
    - `right_language`: the answer is in the language of its row. For this one, more is better.

    `watch/seconds` and `watch/tokens` say what the watch cost, `watch/num_answers` and `watch/mean_tokens` what was
    judged. Every answer goes with its spans to `watch.jsonl` in the output folder, one line a watch. A resumed run
    goes on with that file; a new run in the same folder moves it to `watch.jsonl.old`.

    A watch at an evaluation adds its figures to the evaluation's metrics as `eval_watch/NAME`. So the best checkpoint
    can be chosen by them: `metric_for_best_model="watch/endless"` with `greater_is_better=False`,
    `load_best_model_at_end=True`.

    The weights after training are bit for bit those without the callback: answers are sampled without dropout, and the
    random states are put back. Several processes divide the prompts; the answers do not depend on their number.

    Args:
        prompts (`str`, `os.PathLike` or iterable of `dict`):
            What the model answers, in any form that [`evaluate`] takes: rows with `prompt` (text, or messages) or
            `messages`, and the language of the answer. None of them should be training data.
        faults (`Sequence[str]`, *optional*, defaults to all four):
            Rates to watch.
        judges (`Mapping[str, Callable]`, *optional*):
            Rates of your own. Each function takes a judged answer, a mapping with `prompt`, `answer`, `lang`,
            `num_tokens`, `finished`, `loop` and the other fields of a line of `answers.jsonl`, and returns whether it
            is faulty, or `None` if it cannot be told.
        every (`int`, *optional*):
            Optimizer steps between two watches; the last step is watched too. By default the model is watched at every
            evaluation of the trainer.
        trainer (`Trainer`, *optional*):
            The trainer that the callback is added to. With it, the figures also go to the trackers of `report_to`.
            Without it they go to `trainer.state.log_history`, the terminal and `watch.jsonl`. The answers are sent as
            a table to `wandb` and `trackio` with and without it, and to `tensorboard` with it.
        target_lang (`str`, *optional*, defaults to `"zh"`):
            Switches into this language count. `None` counts every script that the answer's language does not use.
        group_column (`str`, *optional*, defaults to `"lang"`):
            Column that holds the language the answer should be in.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the template, for prompts that are messages.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer, in tokens. An endless loop has at least 64.
        temperature (`float`, *optional*, defaults to `1.0`), top_p (`float`, *optional*, defaults to `0.8`):
            How answers are sampled; temperature 0 takes the likeliest token each time.
        num_samples (`int`, *optional*, defaults to `1`):
            Number of answers to each prompt. The intervals treat them as independent.
        batch_size (`int`, *optional*, defaults to `32`):
            Number of answers generated at once. Another batch size gives other samples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
        engine (`"transformers"` or `"vllm"`, *optional*, defaults to `"transformers"`):
            What generates the answers: the model that is trained, or the engine or server of vLLM that `trainer`
            makes its rollouts with (`use_vllm=True`). vLLM is given the weights of the step first. A server does not
            take the seed, so its answers and the rollouts after a watch are others each time.
        num_shown (`int`, *optional*, defaults to `4`):
            Number of answers that are printed at each watch, faulty ones first. 0 prints the rates alone; `None`
            prints nothing. Printing needs the package `rich`.
        patience (`int`, *optional*):
            Stop the training after so many watches in a row in which the rate `stop_on` did not fall (rise, for
            `right_language`) below its best.
        stop_on (`str`, *optional*):
            The rate that `patience` follows.
        max_loss_increase (`float`, *optional*):
            With `patience`: a rate counts as better only if `eval_loss` is at most this much above its lowest value so
            far.

    Raises:
        ValueError: If a setting or a prompt is not usable; when the trainer takes the callback up or training begins,
            if nothing would ever be watched, if `metric_for_best_model` names a rate that is not watched or has the
            wrong `greater_is_better`, if a prompt and its answer are too long for the model, if the model's parameters
            are sharded (FSDP, DeepSpeed ZeRO-3, tensor parallelism), or if a resumed run was watched with other
            prompts.
    """

    def __init__(
        self,
        prompts: "str | os.PathLike[str] | Iterable[Mapping[str, Any]]",
        *,
        faults: Sequence[str] = tuple(JUDGES),
        judges: Mapping[str, Judge] | None = None,
        every: int | None = None,
        trainer: Any = None,
        target_lang: str | None = "zh",
        group_column: str = "lang",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.8,
        num_samples: int = 1,
        batch_size: int = 32,
        seed: int = 0,
        engine: str = "transformers",
        num_shown: int | None = 4,
        patience: int | None = None,
        stop_on: str | None = None,
        max_loss_increase: float | None = None,
    ):
        self._judges = choose_judges(faults, judges or {})
        target_lang = None if target_lang is None else canonical_language(target_lang)
        counts = {"max_new_tokens": max_new_tokens, "num_samples": num_samples, "batch_size": batch_size}
        counts |= {name: value for name, value in (("every", every), ("patience", patience)) if value is not None}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")
        if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
            raise ValueError(
                f"`temperature` must be 0 or more and `top_p` above 0 and at most 1, got {temperature} and {top_p}."
            )
        if num_shown is not None and num_shown < 0:
            raise ValueError(f"`num_shown` must be 0 or more, or None to print nothing; got {num_shown}.")
        if engine not in ENGINES:
            raise ValueError(f"`engine` is one of {', '.join(ENGINES)}; got {engine!r}.")
        self._patience = _patience(patience, stop_on, max_loss_increase, tuple(self._judges), every)
        self._rows = read_prompts(
            prompts,
            group_column=group_column,
            # The rows must be able to show a switch only where switches are looked for.
            target_lang=target_lang if "switched" in self._judges else None,
            source=None if isinstance(prompts, (str, os.PathLike)) else "the watched prompts",
        )
        self._every = every
        self.trainer = trainer
        self._template_kwargs = dict(chat_template_kwargs or {})
        self._how = Sampling(target_lang, max_new_tokens, temperature, top_p, num_samples, batch_size, seed, engine)
        unseen = [name for name in _LOOPS if name in self._judges]
        if unseen and max_new_tokens < MIN_TOKENS:
            logger.warning(
                "No watched answer can show %s: a loop has %d tokens or more, and `max_new_tokens` is %d.",
                " or ".join(unseen),
                MIN_TOKENS,
                max_new_tokens,
            )
        self._num_shown = num_shown
        self._prompts: WatchedPrompts | None = None
        self._training = False
        self.latest: dict[str, Any] | None = None
        """The last watch: a line of `watch.jsonl`."""

    def on_init_end(self, args, state, control, **kwargs):
        self._check_arguments(args)

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        self._check_arguments(args)
        if self._every is None and str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
            raise ValueError(
                'The model is watched at every evaluation, and `eval_strategy` is "no". Set `eval_strategy`, or '
                "`every`, the number of steps between two watches."
            )
        if is_sharded(model) and self._how.engine == "transformers":
            raise ValueError(
                "The model's parameters are sharded over processes (FSDP, DeepSpeed ZeRO-3 or tensor parallelism), so "
                "no process can generate answers by itself. Take the FaultWatchCallback out, and measure checkpoints "
                "with `sae-posttrain evaluate`; DeepSpeed ZeRO-2 and DDP can be watched, and so can a trainer with "
                '`use_vllm=True`, by `engine="vllm"`.'
            )
        prompts = self._prepare(processing_class)
        prompts.require_room(model, self._engine(processing_class))
        if args.report_to and self.trainer is None and state.is_world_process_zero:
            logger.warning(
                "The figures of the watch go to `log_history` and %s alone, and not to %s. Pass the trainer to send "
                "them there: `trainer.add_callback(FaultWatchCallback(prompts, trainer=trainer))`.",
                record.WATCH_FILE,
                ", ".join(args.report_to),
            )
        self._training, self.latest = True, None
        if self._patience is not None:
            self._patience.best, self._patience.lowest_loss, self._patience.num_worse = None, None, 0
        past: list[dict[str, Any]] = []
        if state.is_world_process_zero:
            past = record.begin(self._file(args), state.global_step, prompts.identity(tuple(self._judges)))
        if args.world_size > 1:
            past = gather_object(past)
        if self._patience is not None:
            for watch in past:
                if rate := watch["rates"].get(self._patience.name):
                    self._patience.add(rate["rate"], watch.get("eval_loss"))

    def on_evaluate(self, args, state, control, metrics=None, model=None, processing_class=None, **kwargs):
        if self._every is not None and not (self._training and self._watched_at(state.global_step)):
            return
        metrics = {} if metrics is None else metrics
        if not (self._training and self._watched_at(state.global_step)):  # several data sets are evaluated at one step
            self._watch(args, state, control, model, processing_class, metrics.get("eval_loss"))
        metrics.update({f"eval_{name}": value for name, value in self._metrics().items()})
        wanted = _watched_metric(args)
        if wanted is not None and f"eval_watch/{wanted}" not in metrics:
            raise ValueError(
                f"No answer can show `{wanted}`, by which the best checkpoint is to be chosen: the prompts' languages "
                "do not allow it to be told. Choose another `metric_for_best_model`, or other prompts."
            )

    def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        last = state.global_step == state.max_steps
        if self._every is not None and (last or state.global_step % self._every == 0):
            self._watch(args, state, control, model, processing_class, None)

    def on_train_end(self, args, state, control, **kwargs):
        self._training = False  # the best checkpoint may have been loaded: a later evaluation is of other weights

    def _check_arguments(self, args: Any) -> None:
        wanted = _watched_metric(args)
        if wanted is None:
            return
        if wanted not in self._judges:
            names = ", ".join(f"watch/{name}" for name in self._judges)
            raise ValueError(f'`metric_for_best_model="watch/{wanted}"` is not watched. Watched: {names}.')
        if self._every is not None:
            raise ValueError(
                f'The best checkpoint is chosen at evaluations (`metric_for_best_model="watch/{wanted}"`), and the '
                f"model is watched every {self._every} steps. Leave out `every`: it is then watched at evaluations."
            )
        if wanted in _LOOPS and self._how.max_new_tokens < MIN_TOKENS:
            raise ValueError(
                f"No answer of {self._how.max_new_tokens} tokens can show `{wanted}`, by which the best checkpoint is "
                f"to be chosen. Set `max_new_tokens` to more than {MIN_TOKENS}, the length of the shortest loop."
            )
        higher = wanted in HIGHER_IS_BETTER
        if wanted in JUDGES and bool(args.greater_is_better) != higher:
            raise ValueError(
                f'`metric_for_best_model="watch/{wanted}"` with `greater_is_better={args.greater_is_better}` would '
                f"keep the worst checkpoint. Set `greater_is_better={higher}`; transformers assumes True for every "
                "metric whose name does not end in `loss`."
            )

    def _prepare(self, processing_class: Any) -> WatchedPrompts:
        if self._prompts is None:
            tokenizer = getattr(processing_class, "tokenizer", processing_class)
            if tokenizer is None:
                raise ValueError(
                    "The trainer has no `processing_class` to tokenize the watched prompts with; pass one."
                )
            self._prompts = WatchedPrompts(self._rows, tokenizer, self._template_kwargs, self._how)
        return self._prompts

    def _engine(self, processing_class: Any) -> TrainerEngine | None:
        """The trainer's engine, if it is to answer."""
        if self._how.engine == "transformers":
            return None
        if self.trainer is None:
            raise ValueError(
                '`engine="vllm"` asks the engine of the trainer. Pass it: `trainer.add_callback(FaultWatchCallback('
                'prompts, engine="vllm", trainer=trainer))`.'
            )
        return TrainerEngine(self.trainer, getattr(processing_class, "tokenizer", processing_class))

    def _watched_at(self, step: int) -> bool:
        return self.latest is not None and self.latest["step"] == step

    def _file(self, args: Any) -> Path:
        return Path(args.output_dir) / record.WATCH_FILE

    def _watch(
        self, args: Any, state: Any, control: Any, model: Any, processing_class: Any, eval_loss: float | None
    ) -> None:
        prompts = self._prepare(processing_class)
        begun = time.perf_counter()
        engine = self._engine(processing_class)
        answers = prompts.answer(model, self._judges, args.process_index, args.world_size, engine)
        if args.world_size > 1:
            answers = gather_object(answers)
        answers.sort(key=lambda answer: (answer["row"], answer["sample"]))
        self.latest = {
            "step": state.global_step,
            "epoch": state.epoch,
            "rates": rates_of(answers, self._judges),
            "eval_loss": eval_loss,
            "seconds": time.perf_counter() - begun,
            "tokens": sum(answer["num_tokens"] for answer in answers),
            "identity": prompts.identity(tuple(self._judges)),
            "answers": answers,
        }
        metrics = self._metrics()
        if state.is_world_process_zero:
            record.append(self._file(args), self.latest)
            send_answers(args.report_to, self.latest, self.trainer)
            self._show()
        # Not through `Trainer.log`, which would empty the trainer's own metrics between two of its logging steps.
        state.log_history.append({**metrics, "epoch": state.epoch, "step": state.global_step})
        if self.trainer is not None:
            should_log = control.should_log  # the handler clears it, and the step's own figures are yet to be logged
            logs = metrics if state.epoch is None else {**metrics, "epoch": state.epoch}
            self.trainer.callback_handler.on_log(args, state, control, dict(logs))
            control.should_log = should_log
        if self._patience is not None and (rate := self.latest["rates"].get(self._patience.name)):
            if self._patience.add(rate["rate"], eval_loss) and self._training:
                control.should_training_stop = True
                if state.is_world_process_zero:
                    logger.warning(
                        "Step %d: training stops, `watch/%s` got no better than %.3f in %d watches.",
                        state.global_step,
                        self._patience.name,
                        self._patience.best if self._patience.best is not None else rate["rate"],
                        self._patience.num_worse,
                    )

    def _metrics(self) -> dict[str, float]:
        assert self.latest is not None
        num_answers = len(self.latest["answers"])
        return {
            **as_metrics(self.latest["rates"]),
            "watch/num_answers": float(num_answers),
            "watch/mean_tokens": self.latest["tokens"] / num_answers,
            "watch/seconds": self.latest["seconds"],
            "watch/tokens": float(self.latest["tokens"]),
        }

    def _show(self) -> None:
        if self._num_shown is None or self.latest is None:
            return
        if find_spec("rich") is None:
            logger.warning("Answers of the watch are not printed: `pip install rich`, or set `num_shown=None`.")
            self._num_shown = None
            return
        print_watch(self.latest, self._num_shown)


def _watched_metric(args: Any) -> str | None:
    """The rate that chooses the best checkpoint, if it is one of a watch."""
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    return name.removeprefix("watch/") if name.startswith("watch/") else None


def _patience(
    patience: int | None,
    stop_on: str | None,
    max_loss_increase: float | None,
    names: Sequence[str],
    every: int | None,
) -> Patience | None:
    if patience is None:
        if stop_on is not None or max_loss_increase is not None:
            raise ValueError(
                "`stop_on` and `max_loss_increase` need `patience`, the number of watches without a gain."
            )
        return None
    if stop_on is None or stop_on not in names:
        raise ValueError(f"`patience` needs `stop_on`, one of {', '.join(names)}; got {stop_on!r}.")
    if max_loss_increase is not None and every is not None:
        raise ValueError(
            "`max_loss_increase` needs the loss of an evaluation. Leave out `every` to watch at each one."
        )
    return Patience(stop_on, patience, max_loss_increase)

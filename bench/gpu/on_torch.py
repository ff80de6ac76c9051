"""What torch and transformers make of the same card: `on_torch.py limits DEVICE`, or
`on_torch.py generate DEVICE MODEL BATCH`. Prints JSON."""

import json
import sys
import time

import torch

NEW_TOKENS, PROMPT_TOKENS = 128, 128


def limits(device):
    def seconds(work, times=20):
        for _ in range(3):
            work()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / times

    source = torch.empty(4 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / seconds(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    return {"bytes_per_s": copied, "flop_per_s": 2 * 8192**3 / seconds(lambda: a @ b)}


def generate(device, model, batch):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device).eval()
    rates = {}
    for count in (1, int(batch)):
        prompts = torch.randint(300, 4000, (count, PROMPT_TOKENS), device=device)
        for is_measured in (False, True):
            began = time.perf_counter()
            with torch.inference_mode():
                loaded.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, pad_token_id=0,
                                max_new_tokens=NEW_TOKENS if is_measured else 4, min_new_tokens=4, eos_token_id=None)
            rates[count] = count * NEW_TOKENS / (time.perf_counter() - began)
    return rates


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if arguments[0].startswith("cuda"):
        torch.cuda.set_device(arguments[0])
    print(json.dumps({"limits": limits, "generate": generate}[what](*arguments)))

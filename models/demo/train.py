"""Trains the bundled demo model on a CPU and writes it as a Hugging Face model directory.

    python train.py --out /tmp/demo

The tokenizer is learned first, then the weights. Chats are drawn anew all the time, so no two
batches are equal; with the same seed and the same number of steps the sequence is the same.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from chat_format import CHAT_TEMPLATE, END, MARKER_TOKENS, PAD, SPECIAL_TOKENS
from corpus import random_chat
from model import Qwen3, Shape

# Capitalised words, digits and the characters of paths and ids never take the space before them.
# A name is then the same tokens in a question and inside JSON quotes, which makes copying easy.
SPLIT = r" ?\p{Ll}+|\p{Lu}\p{L}*|\p{L}+|\p{N}|[/_@.\-#]| ?[^\s\p{L}\p{N}/_@.\-#]+|\s+"


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="directory to write the model to")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps")
    parser.add_argument("--minutes", type=float, default=45, help="wall-clock limit; the schedule shrinks to fit it")
    parser.add_argument("--tokens", type=int, default=4400, help="tokens per step")
    parser.add_argument("--tool-share", type=float, default=0.5, help="share of the chats that have tools")
    parser.add_argument("--muon-rate", type=float, default=0.015, help="learning rate of the matrices")
    parser.add_argument("--adam-rate", type=float, default=0.003, help="learning rate of embeddings and norms")
    parser.add_argument("--start", type=Path, help="continue from this model directory")
    parser.add_argument("--save-every", type=float, default=0, help="also save every so many minutes")
    parser.add_argument("--eager", action="store_true", help="do not compile the model (slower, needs no C++ compiler)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def train_tokenizer(rng, vocab):
    """A byte-level BPE tokenizer learned from random chats."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = SPECIAL_TOKENS + MARKER_TOKENS
    chats = ("".join(text for text, _ in random_chat(rng, 0.25)) for _ in range(30000))
    plain = (without(text, added) for text in chats)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(plain, trainer)
    return with_plain_markers(tokenizer)


def with_plain_markers(tokenizer):
    """The same tokenizer with visible markers; the trainer makes special tokens of all that it adds."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    return Tokenizer.from_str(json.dumps(state))


def without(text, tokens):
    """The text with all added tokens replaced by line breaks."""
    for token in tokens:
        text = text.replace(token, "\n")
    return text


def write_json(path, value):
    """Writes readable JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer, out):
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(out / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for token in SPECIAL_TOKENS + MARKER_TOKENS
    }
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": added,
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": END,
            "pad_token": PAD,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "model_max_length": Shape.context,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def save_config(tokenizer, shape, out):
    """Writes config.json and generation_config.json."""
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    write_json(
        out / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": shape.vocab,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": shape.context,
            "rms_norm_eps": shape.eps,
            "rope_theta": shape.theta,
            "rope_scaling": None,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "sliding_window": None,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "use_cache": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": end,
            "pad_token_id": pad,
        },
    )
    write_json(out / "generation_config.json", {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad})


def save_weights(model, out):
    """Writes the weights in bf16; the output layer is tied and left out."""
    tensors = {
        f"model.{name}": tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


def load_weights(model, directory):
    """Reads the weights that `save_weights` wrote."""
    tensors = load_file(str(directory / "model.safetensors"))
    model.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})


def encode_chat(rng, tokenizer, pieces):
    """One chat as (token ids, weight of predicting each token).

    Answers weigh 1. A tenth of the chats also learn a little from the rest of the text, which
    helps the model to find repetitions in it.
    """
    other = 0.3 if rng.random() < 0.1 else 0.0
    ids, weights = [], []
    for encoding, (_, is_assistant) in zip(tokenizer.encode_batch([text for text, _ in pieces]), pieces):
        ids += encoding.ids
        weights += [1.0 if is_assistant else other] * len(encoding.ids)
    return ids, weights


def batches(rng, tokenizer, tool_share, budget):
    """Endless batches of chats of similar length, as (tokens, weights), each [batch, length].

    Every batch has at least two rows, because the compiled model would be built anew for one.
    """
    while True:
        chats = (encode_chat(rng, tokenizer, random_chat(rng, tool_share)) for _ in range(3000))
        pool = sorted((chat for chat in chats if len(chat[0]) <= budget // 2), key=lambda chat: len(chat[0]))
        groups, group = [], []
        for chat in pool:
            if group and (len(group) + 1) * len(chat[0]) > budget:
                groups.append(group)
                group = []
            group.append(chat)
        rng.shuffle(groups)
        yield from (pad_group(group) for group in groups if len(group) > 1)


def pad_group(group):
    """Pads chats at their ends to a common length."""
    length = max(len(ids) for ids, _ in group)
    tokens = torch.zeros(len(group), length, dtype=torch.long)
    weights = torch.zeros(len(group), length)
    for row, (ids, weight) in enumerate(group):
        tokens[row, : len(ids)] = torch.tensor(ids)
        weights[row, : len(ids)] = torch.tensor(weight)
    return tokens, weights


def weighted_loss(model, body, tokens, weights):
    """The summed loss of predicting each token that has a weight; `body` is the compiled model."""
    targets, target_weights = tokens[:, 1:], weights[:, 1:]
    chosen = target_weights > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.logits(body(tokens[:, :-1])[chosen])
    return (F.cross_entropy(logits.float(), targets[chosen], reduction="none") * target_weights[chosen]).sum()


def make_optimizers(model, arguments):
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [parameter for parameter in model.layers.parameters() if parameter.ndim == 2]
    others = [
        parameter for name, parameter in model.named_parameters() if parameter.ndim < 2 or name.startswith("embed")
    ]
    return [
        torch.optim.Muon(matrices, lr=arguments.muon_rate, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(others, lr=arguments.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def set_rates(optimizers, progress, step):
    """A short warm-up, a constant rate, and a linear fall to zero over the second half."""
    factor = min(1.0, (step + 1) / 60) * min(1.0, max(0.0, (1 - progress) / 0.5))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("base", group["lr"])
            group["lr"] = group["base"] * factor


def train_step(model, body, optimizers, source):
    """Two batches, usually of different lengths, then one update; returns the mean loss and the tokens."""
    pairs = [next(source), next(source)]
    total = sum(weights[:, 1:].sum() for _, weights in pairs)
    mean = 0.0
    for tokens, weights in pairs:
        loss = weighted_loss(model, body, tokens, weights) / total
        loss.backward()
        mean += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return mean, sum(tokens.numel() for tokens, _ in pairs)


def train(model, tokenizer, arguments):
    """Runs all steps, within the wall-clock limit."""
    optimizers = make_optimizers(model, arguments)
    source = batches(random.Random(arguments.seed), tokenizer, arguments.tool_share, arguments.tokens // 2)
    body = model if arguments.eager else torch.compile(model, dynamic=True)
    began = saved = time.monotonic()
    seen, average = 0, None
    with tqdm(total=arguments.steps, unit="step", mininterval=2) as bar:
        for step in range(arguments.steps):
            elapsed = time.monotonic() - began
            progress = max(step / arguments.steps, elapsed / (60 * arguments.minutes))
            if progress >= 1:
                break
            set_rates(optimizers, progress, step)
            loss, tokens = train_step(model, body, optimizers, source)
            seen += tokens
            average = loss if average is None else 0.98 * average + 0.02 * loss
            bar.set_postfix_str(
                f"loss {average:.4f}, {seen / (time.monotonic() - began):.0f} tokens/s, {100 * progress:.0f}% of the schedule",
                refresh=False,
            )
            bar.update()
            if arguments.save_every and time.monotonic() - saved > 60 * arguments.save_every:
                save_weights(model, arguments.out)
                saved = time.monotonic()
    print(f"{step + 1} steps, {seen} tokens, {(time.monotonic() - began) / 60:.1f} minutes, loss {average:.4f}")


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    if arguments.start:
        tokenizer = Tokenizer.from_file(str(arguments.start / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(random.Random(0), shape.vocab)
    save_tokenizer(tokenizer, arguments.out)
    save_config(tokenizer, shape, arguments.out)
    model = Qwen3(shape)
    if arguments.start:
        load_weights(model, arguments.start)
    print(
        f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {tokenizer.get_vocab_size()} tokens"
    )
    train(model, tokenizer, arguments)
    save_weights(model, arguments.out)


if __name__ == "__main__":
    main()

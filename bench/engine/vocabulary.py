"""A tokenizer of any size: the bundled model's vocabulary and merges, and made-up words after them.
The words come of no merge, so no text is encoded to them, but models that choose at random say them."""

import itertools
import json
import shutil
from pathlib import Path

DEMO = Path(__file__).parents[2] / "models/demo"
# How Qwen 2 cuts text into words; llama.cpp knows it as "qwen2".
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPLIT_NAME = "qwen2"
END, PADDING = 2, 0
SPACE = "Ġ"


def made_up_words():
    """Distinct words of three syllables and then four, a space before each."""
    syllables = [c + v for c in "bdfghjklmnprstvwz" for v in ("a", "e", "i", "o", "u", "ai", "oo")]
    for count in (3, 4):
        for word in itertools.product(syllables, repeat=count):
            yield SPACE + "".join(word)


def tokenizer(size):
    """A parsed `tokenizer.json` with so many tokens."""
    made = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = made["model"]["vocab"]
    for word in made_up_words():
        if len(vocabulary) == size:
            break
        vocabulary.setdefault(word, len(vocabulary))
    made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ]}
    return made


def write(directory, shape):
    """What a Hugging Face directory has beside the weights."""
    write_json(directory / "tokenizer.json", tokenizer(shape.vocabulary))
    settings = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(directory / "tokenizer_config.json", settings | {"model_max_length": shape.context})
    shutil.copy(DEMO / "generation_config.json", directory)
    write_json(directory / "config.json", shape.config())


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

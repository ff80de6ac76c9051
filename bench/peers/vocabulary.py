"""Trains a byte-level BPE of 32,768 tokens on text of a made-up language, and writes what a server
needs of a model that has it: `tokenizer.json`, `tokenizer_config.json`, `config.json`.

    target/peers/bin/python bench/peers/vocabulary.py target/peers-model

Needs the package `tokenizers`; the same text, and so the same vocabulary, each time.
"""

import argparse
import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from language import Language

DEMO = Path(__file__).parents[2] / "models/demo"
VOCABULARY_TOKENS = 32_768
TEXTS = 4_000
TEXT_WORDS = 500
CONTEXT_TOKENS = 32_768
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train():
    """A tokenizer with the added tokens of the bundled model's chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    added = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=[AddedToken(token["content"], special=True) for token in added],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    language = Language()
    texts = (language.text(TEXT_WORDS, f"training {number}") for number in range(TEXTS))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train()
    tokenizer.save(str(directory / "tokenizer.json"))
    shutil.copy(DEMO / "tokenizer_config.json", directory)
    shutil.copy(DEMO / "generation_config.json", directory)
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    config |= {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": CONTEXT_TOKENS}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    text = Language().text(30, "a look")
    print(f"{tokenizer.get_vocab_size()} tokens; 30 words are {len(tokenizer.encode(text).ids)}: {text}")


if __name__ == "__main__":
    main()

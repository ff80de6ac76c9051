"""A made-up language: words as frequent as those of a real one, for a tokenizer and for prompts."""

import bisect
import itertools
import json
import random
import re
from pathlib import Path

DIALOGUES = Path(__file__).parents[2] / "models/demo/dialogues"
WORDS_COUNT = 60_000
SENTENCE_WORDS = (4, 20)

ONSETS = "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p ph pl pr qu r s sc sh sl sp st str t th tr v w".split()
VOWELS = "a e i o u ai ea ee ie oa oo ou".split()
CODAS = ["", "", "", "n", "r", "s", "t", "l", "m", "nd", "st", "ck", "ng", "x"]
ENDINGS = ["", "", "", "", "s", "ed", "ing", "er", "ly", "tion", "ness", "able"]


class Language:
    """Words, the n-th of which is drawn with a weight of 1/n; the same for the same seed."""

    _shared = None

    def __init__(self):
        dice = random.Random("words")
        words = dict.fromkeys(real_words())
        while len(words) < WORDS_COUNT:
            syllables = (
                dice.choice(ONSETS) + dice.choice(VOWELS) + dice.choice(CODAS)
                for _ in range(dice.choice((1, 2, 2, 3)))
            )
            words["".join(syllables) + dice.choice(ENDINGS)] = None
        self.words = list(words)
        weights = (1 / (rank + 3) for rank in range(len(self.words)))
        self.cumulative = list(itertools.accumulate(weights))

    @classmethod
    def shared(cls):
        """One for all that ask."""
        if cls._shared is None:
            cls._shared = cls()
        return cls._shared

    def text(self, words, seed):
        """Sentences of that many words in all."""
        dice = random.Random(str(seed))
        sentences = []
        while words > 0:
            count = min(words, dice.randint(*SENTENCE_WORDS))
            sentences.append(self.sentence(count, dice))
            words -= count
        return " ".join(sentences)

    def sentence(self, count, dice):
        words = [self.word(dice) for _ in range(count)]
        words[0] = words[0].capitalize()
        if count > 8:
            words[count // 2] += ","
        if dice.random() < 0.1:
            words[-1] = str(dice.randint(0, 9999))
        return " ".join(words) + dice.choice("....?!")

    def word(self, dice):
        drawn = dice.random() * self.cumulative[-1]
        return self.words[bisect.bisect(self.cumulative, drawn)]


def real_words():
    """The words of the bundled model's dialogues, most frequent first."""
    counts = {}
    for file in sorted(DIALOGUES.iterdir()):
        strings = json.dumps(file.read_text(encoding="utf-8"))
        for word in re.findall(r"[a-z]{2,}", strings):
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))

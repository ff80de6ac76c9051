"""Random training dialogues, built from the files in `dialogues/`."""

import json
from pathlib import Path

from chat_format import segments
from tool_dialogues import (
    FAMILIES,
    WORDS,
    distractors,
    fill_question,
    load_json,
    placeholders,
    pseudo_word,
    random_city,
    random_name,
    random_value,
    repeated_use,
    tool_turns,
    tool_writer,
)

DATA = Path(__file__).parent / "dialogues"
TOPIC_FILES = ["basics", "cache", "api", "hardware", "systems", "stator"]
# Questions of these families use words of real topics, so without a tool they are not "off topic".
INFRASTRUCTURE = {"metric", "workerstats", "drainworker", "scale", "gpus", "logs", "loglevel", "restart", "deploy"}

OFF_TOPIC_FAMILIES = [family for family in FAMILIES if family["id"] not in INFRASTRUCTURE]


def load_lines(name):
    """Reads a file with one JSON object per line."""
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


TOPICS = [topic for name in TOPIC_FILES for topic in load_lines(name)]
COMPARISONS = load_lines("comparisons")
SMALL_TALK = load_lines("smalltalk")
OFF_TOPIC = load_json("off_topic.json")
FRAMES = load_json("frames.json")
SYSTEM_PROMPTS = load_json("system_prompts.json")
SYNONYMS = {word: group for group in load_json("synonyms.json") for word in group}
TOPIC_OF_TERM = {term.lstrip("+"): topic for topic in TOPICS for term in topic["terms"]}


def typo(rng, text):
    """Swaps or drops one letter."""
    if len(text) < 6:
        return text
    at = rng.randrange(1, len(text) - 2)
    if not text[at : at + 2].isalpha():
        return text
    return text[:at] + (text[at + 1] + text[at] if rng.random() < 0.5 else text[at]) + text[at + 2 :]


def drop_words(rng, text):
    """Leaves out some of the words."""
    words = [word for word in text.split() if rng.random() > 0.15]
    return " ".join(words) if len(words) >= 2 else text


def polish(rng, text):
    """Varies the surface of a question: prefix, suffix, capital letter, punctuation."""
    if rng.random() < 0.2:
        text = rng.choice(FRAMES["prefix"]) + text
    if rng.random() < 0.06:
        text += rng.choice(FRAMES["suffix"])
    if rng.random() < 0.65:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.7 and text[-1] not in "?.!":
        is_question = text.lower().startswith(
            (
                "what",
                "how",
                "why",
                "which",
                "who",
                "when",
                "where",
                "is",
                "are",
                "can",
                "do",
                "does",
                "should",
                "will",
                "has",
                "and",
            )
        )
        text += "?" if is_question or rng.random() < 0.3 else rng.choice([".", ".", "!"])
    return text


def noisy(rng, text):
    """Varies a question as `polish` does, and adds typing errors now and then."""
    if rng.random() < 0.12:
        text = drop_words(rng, text)
    if rng.random() < 0.1:
        text = typo(rng, text)
    if rng.random() < 0.12:
        text = text.lower()
    return polish(rng, text)


def user(text):
    """A user message."""
    return {"role": "user", "content": text}


def assistant(text):
    """An assistant message."""
    return {"role": "assistant", "content": text}


def framed_term(rng, topic, frames=None):
    """A question made from a term of a topic and a sentence frame."""
    term = rng.choice(topic["terms"])
    frames = frames or ("plural" if term.startswith("+") else "singular")
    text = rng.choice(FRAMES[frames]).replace("{t}", term.lstrip("+"))
    return text.replace("what is", "what are") if term.startswith("+") else text


def with_synonyms(rng, text, share=0.3):
    """Replaces some of the words by others of like meaning."""
    return " ".join(
        rng.choice(SYNONYMS[word]) if word in SYNONYMS and rng.random() < share else word for word in text.split()
    )


def rephrased(rng, text):
    """Turns "how do I ..." and the like into another kind of question or request."""
    for start, frames in (
        ("how do I ", "how_do_i"),
        ("how can I ", "how_do_i"),
        ("what is ", "what_is"),
        ("which ", "which"),
        ("why is ", "why"),
        ("why ", "why"),
    ):
        if text.startswith(start):
            return rng.choice(FRAMES[frames]).replace("{x}", text[len(start) :])
    return text


def words_of(text):
    """The words of a text without punctuation at their ends."""
    return [word.strip('.,;:?!"()') for word in text.split()]


def training_text(topic):
    """All text of a topic that training may use, which leaves out the held-out phrasings."""
    return " ".join([topic["answer"], topic["more"], *topic["terms"], *topic["questions"]])


def count_topics_per_word():
    """In how many topics each word occurs."""
    counts = {}
    for topic in TOPICS:
        for word in set(words_of(training_text(topic))):
            counts[word] = counts.get(word, 0) + 1
    return counts


TOPICS_PER_WORD = count_topics_per_word()


def fragment_question(rng, topic):
    """A question around a few consecutive words of the answer, which ties its words to the topic."""
    words = words_of(rng.choice([topic["answer"], topic["answer"], topic["more"] or topic["answer"]]))
    length = min(len(words), rng.randint(3, 9))
    at = rng.randrange(len(words) - length + 1)
    return rng.choice(FRAMES["fragment"]).replace("{x}", " ".join(words[at : at + length]))


def keyword_question(rng, topic):
    """A few words of the topic in loose order, the rarer ones more often."""
    words = [word for word in set(words_of(training_text(topic))) if len(word) > 2 and TOPICS_PER_WORD[word] < 40]
    words.sort()
    weights = [TOPICS_PER_WORD[word] ** -0.7 for word in words]
    chosen = rng.choices(words, weights, k=rng.randint(2, 5))
    small = ["the", "a", "of", "in", "to", "for", "is", "when", "how", "with", "what", "which", "do", "my"]
    return " ".join(part for word in chosen for part in ([rng.choice(small)] if rng.random() < 0.6 else []) + [word])


def topic_question(rng, topic):
    """A training phrasing for a topic: from a frame, by hand with variations, or from its words."""
    roll = rng.random()
    if topic["terms"] and roll < 0.25:
        return noisy(rng, framed_term(rng, topic))
    if roll < 0.7:
        text = rng.choice(topic["questions"])
        if rng.random() < 0.4:
            text = rephrased(rng, text)
        return noisy(rng, with_synonyms(rng, text))
    make = fragment_question if roll < 0.87 else keyword_question
    return noisy(rng, with_synonyms(rng, make(rng, topic)))


def topic_turns(rng, topic=None):
    """A question and its answer."""
    topic = topic or rng.choice(TOPICS)
    return [user(topic_question(rng, topic)), assistant(topic["answer"])]


def more_turns(rng):
    """A topic, then "tell me more", and sometimes once again."""
    topic = rng.choice([topic for topic in TOPICS if topic["more"]])
    turns = topic_turns(rng, topic) + [user(polish(rng, rng.choice(FRAMES["more"]))), assistant(topic["more"])]
    if rng.random() < 0.15:
        turns += [user(polish(rng, rng.choice(FRAMES["more"]))), assistant(FRAMES["no_more"])]
    return turns


def next_turns(rng):
    """A topic, then "and what is ..." for another one."""
    other = rng.choice(TOPICS)
    return topic_turns(rng) + [user(polish(rng, framed_term(rng, other, "next"))), assistant(other["answer"])]


def comparison_turns(rng):
    """The difference between two terms, asked at once or as a follow-up."""
    pair = rng.choice(COMPARISONS)
    a, b = (pair["first"], pair["second"]) if rng.random() < 0.5 else (pair["second"], pair["first"])
    if rng.random() < 0.5 and a in TOPIC_OF_TERM:
        question = rng.choice(FRAMES["compare_next"]).replace("{b}", b)
        return topic_turns(rng, TOPIC_OF_TERM[a]) + [user(polish(rng, question)), assistant(pair["answer"])]
    question = rng.choice(FRAMES["compare"]).replace("{a}", a).replace("{b}", b)
    return [user(noisy(rng, question)), assistant(pair["answer"])]


def small_talk_turns(rng):
    """A greeting, thanks, and the like."""
    talk = rng.choice(SMALL_TALK)
    return [user(polish_talk(rng, rng.choice(talk["questions"]))), assistant(talk["answer"])]


def polish_talk(rng, text):
    """Varies small talk without the prefixes, which would change its meaning."""
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    return text + rng.choice(["", "", ".", "!", "?"]) if text[-1].isalpha() else text


def off_topic_question(rng):
    """A question that has nothing to do with LLM serving."""
    roll = rng.random()
    if roll < 0.45:
        return noisy(rng, rng.choice(OFF_TOPIC["questions"]))
    if roll < 0.75:
        text = rng.choice(FRAMES["off_topic"])
        noun = rng.choice(WORDS["nouns"][-42:]) if rng.random() < 0.85 else pseudo_word(rng)
        return noisy(
            rng, text.replace("{n}", noun).replace("{p}", random_name(rng)).replace("{c}", random_city(rng, False))
        )
    return family_question(rng, rng.choice(OFF_TOPIC_FAMILIES))


def family_question(rng, family):
    """A question that would need a tool of this family."""
    template = polish(rng, rng.choice(family["questions"]))
    values = {key: random_value(rng, family["params"][key]["kind"]) for key in set(placeholders(template))}
    return fill_question(rng, template, values, family)


def off_topic_turns(rng):
    """A question off the topic and the one answer to it."""
    return [user(off_topic_question(rng)), assistant(OFF_TOPIC["answer"])]


def written_off_topic_turns(rng):
    """A question off the topic from the list, which no tool fits."""
    return [user(noisy(rng, rng.choice(OFF_TOPIC["questions"]))), assistant(OFF_TOPIC["answer"])]


def plain_turns(rng):
    """Any turns without tools."""
    kind = rng.choices(
        [topic_turns, more_turns, next_turns, comparison_turns, small_talk_turns, off_topic_turns],
        [50, 9, 6, 8, 11, 16],
    )[0]
    return kind(rng)


def long_document(rng):
    """A long text for the system prompt, so that the model also answers after much context."""
    sentences = [rng.choice(TOPICS)[rng.choice(["answer", "more"])] for _ in range(rng.randint(4, 14))]
    return "Here are some notes.\n" + " ".join(sentence for sentence in sentences if sentence)


def with_system(rng, messages):
    """Adds a system prompt to some of the chats."""
    roll = rng.random()
    if roll < 0.6:
        return messages
    text = rng.choice(SYSTEM_PROMPTS)
    if roll > 0.97:
        text += "\n\n" + long_document(rng)
    return [{"role": "system", "content": text}] + messages


def unfit_dialogue(rng):
    """A question that none of the listed tools fits, answered as if there were no tools."""
    count = rng.choices([1, 2, 3], [60, 28, 12])[0]
    if rng.random() < 0.45:
        family = rng.choice(OFF_TOPIC_FAMILIES)
        return distractors(rng, count, avoid_family=family), [
            user(family_question(rng, family)),
            assistant(OFF_TOPIC["answer"]),
        ]
    turns = rng.choice([topic_turns, topic_turns, written_off_topic_turns, small_talk_turns])
    return distractors(rng, count), turns(rng)


def tool_dialogue(rng):
    """A dialogue with tools: used once, used repeatedly, or not fitting at all."""
    roll = rng.random()
    if roll < 0.4:
        tools, messages = tool_turns(rng, polish)
    elif roll < 0.74:
        tools, messages = repeated_use(rng, polish)
    else:
        tools, messages = unfit_dialogue(rng)
    if rng.random() < 0.12:
        messages = messages + rng.choice([topic_turns, small_talk_turns])(rng)
    if rng.random() < 0.08:
        messages = topic_turns(rng) + messages
    return tools, messages


def random_chat(rng, tool_share):
    """One training chat as a list of (text, is_assistant) pieces."""
    if rng.random() < tool_share:
        tools, messages = tool_dialogue(rng)
        return segments(with_system(rng, messages), tools, tool_writer(rng))
    messages = plain_turns(rng)
    if rng.random() < 0.22:
        for _ in range(rng.randint(1, 4)):
            messages = messages + plain_turns(rng)
    return segments(with_system(rng, messages))

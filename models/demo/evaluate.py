"""Scores the demo model on phrasings, tools and values that training never saw.

    python evaluate.py --model .

The directory is loaded with transformers like any other model, answers are greedy, and every
score is taken on the raw text, special tokens included.
"""

import argparse
import json
import random
from collections import namedtuple
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_format import END, PAD, check_template
from corpus import (
    COMPARISONS,
    FRAMES,
    OFF_TOPIC,
    OFF_TOPIC_FAMILIES,
    SMALL_TALK,
    SYSTEM_PROMPTS,
    TOPICS,
    family_question,
)
from tool_dialogues import FAMILIES, UNSEEN_FAMILIES, call_message, distractors, random_value, tool_case

Case = namedtuple("Case", "group messages tools passes expected")
Outcome = namedtuple("Outcome", "case text stopped passed")


def has_keywords(keywords):
    """A check that all keywords occur in the text and that it is no tool call."""
    return lambda text: "<tool_call>" not in text and all(keyword.lower() in text.lower() for keyword in keywords)


def question(text, system=None):
    """Messages with one question."""
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]


def keyword_case(group, messages, keywords, tools=None):
    """A case that passes when the answer has all the keywords."""
    return Case(group, messages, tools, has_keywords(keywords), ", ".join(keywords))


def topic_cases(rng):
    """Phrasings of the topics that training never saw; a third of them with a system prompt.

    The held-out ones were written after the last training phrasing. The development ones were
    known while it was written, and they are worded farther away from the terms.
    """
    for group, key in (("topics, held-out phrasings", "held_out"), ("topics, development phrasings", "development")):
        for topic in TOPICS:
            for text in topic[key]:
                system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.33 else None
                yield keyword_case(group, question(text, system), topic["keywords"])


def comparison_cases(rng):
    """Differences, asked with held-out frames."""
    for pair in COMPARISONS:
        for frame in FRAMES["compare_held_out"]:
            text = frame.replace("{a}", pair["first"]).replace("{b}", pair["second"])
            yield keyword_case("comparisons, held-out frames", question(text), pair["keywords"])


def small_talk_cases(rng):
    """Greetings, thanks and the like."""
    for talk in SMALL_TALK:
        for text in talk["held_out"]:
            yield keyword_case("small talk, held-out phrasings", question(text), talk["keywords"])


def off_topic_cases(rng):
    """Questions off the topic, with and without tools that do not fit."""
    for number, text in enumerate(OFF_TOPIC["held_out"]):
        tools = distractors(rng, 2) if number % 4 == 0 else None
        yield keyword_case("off topic, held-out questions", question(text), OFF_TOPIC["keywords"], tools)


def follow_up_cases(rng):
    """Two-turn chats: a held-out phrasing, its answer, then "tell me more" or another topic."""
    for topic in rng.sample([topic for topic in TOPICS if topic["more"]], 60):
        first = question(rng.choice(topic["held_out"])) + [{"role": "assistant", "content": topic["answer"]}]
        other = rng.choice(TOPICS)
        yield keyword_case(
            "follow-ups, second topic (held out)", first + question(rng.choice(other["held_out"])), other["keywords"]
        )
        yield keyword_case(
            "follow-ups, tell me more", first + question(rng.choice(FRAMES["more"]) + "?"), [topic["more"]]
        )


def long_chat_cases(rng):
    """The held-out question comes as the fifth turn of a chat."""
    for topic in rng.sample(TOPICS, 40):
        messages = []
        for earlier in rng.sample(TOPICS, 4):
            messages += question(rng.choice(earlier["questions"])) + [
                {"role": "assistant", "content": earlier["answer"]}
            ]
        yield keyword_case(
            "fifth turn (held out)", messages + question(rng.choice(topic["held_out"])), topic["keywords"]
        )


def is_call(name, arguments):
    """A check that the text is exactly one call with this name and these arguments."""

    def passes(text):
        body = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
        if len(body) != len(text) - len("<tool_call>\n\n</tool_call>"):
            return False
        try:
            return json.loads(body) == {"name": name, "arguments": arguments}
        except json.JSONDecodeError:
            return False

    return passes


def call_case(rng, group, family, tool_count):
    """A held-out question for a tool with an unseen name and unseen values."""
    tools, text, name, arguments, _, _ = tool_case(rng, family, held_out=True, tool_count=tool_count)
    return Case(
        group, question(text), tools, is_call(name, arguments), json.dumps({"name": name, "arguments": arguments})
    )


def call_cases(rng):
    """Calls of known kinds of tools with one, two and three tools, and of unseen kinds."""
    for family in FAMILIES:
        for count in (1, 1, 2, 3):
            yield call_case(rng, "tool calls, unseen names and phrasings", family, count)
    for family in UNSEEN_FAMILIES:
        for count in (1, 1, 2, 2):
            yield call_case(rng, "tool calls, unseen kinds of tools", family, count)


def result_cases(rng):
    """After a call and its result, the answer must contain the values of the result."""
    for family in FAMILIES:
        for _ in range(2):
            tools, text, name, arguments, _, values = tool_case(rng, family, held_out=True)
            result = {key: random_value(rng, kind) for key, kind in family["result"].items()}
            messages = question(text) + [
                call_message(name, json.dumps(arguments)),
                {"role": "tool", "content": json.dumps(result)},
            ]
            # Any one of the written answers is right, so each value that all of them use must occur.
            wanted = [
                str(value)
                for key, value in result.items()
                if all("{" + key + "}" in answer for answer in family["answers"])
            ]
            yield keyword_case("answers from tool results", messages, wanted, tools)


def unfit_cases(rng):
    """Tools are given but do not fit: a topic is answered, other questions are declined."""
    for topic in rng.sample(TOPICS, 40):
        yield keyword_case(
            "unfit tools, topic (held out)",
            question(rng.choice(topic["held_out"])),
            topic["keywords"],
            distractors(rng, rng.randint(1, 3)),
        )
    for family in OFF_TOPIC_FAMILIES:
        text = family_question(rng, family)
        yield keyword_case(
            "unfit tools, other request",
            question(text),
            OFF_TOPIC["keywords"],
            distractors(rng, 2, avoid_family=family),
        )


@torch.inference_mode()
def generate(model, tokenizer, cases, limit):
    """Greedy answers to cases of similar length, as raw texts."""
    texts = [
        tokenizer.apply_chat_template(case.messages, tools=case.tools, tokenize=False, add_generation_prompt=True)
        for case in cases
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    outputs = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
    return tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)


def run(model, tokenizer, cases, batch, limit):
    """Runs all cases, longest prompts together."""
    cases = sorted(cases, key=lambda case: len(json.dumps([case.messages, case.tools])))
    outcomes = []
    for at in range(0, len(cases), batch):
        group = cases[at : at + batch]
        for case, raw in zip(group, generate(model, tokenizer, group, limit)):
            raw = raw.replace(PAD, "")
            text = raw.split(END)[0]
            outcomes.append(Outcome(case, text, END in raw, END in raw and case.passes(text)))
    return outcomes


def report(outcomes, failures):
    """Prints the table of scores and some failures of each group."""
    groups = sorted({outcome.case.group for outcome in outcomes})
    print(f"{'':44}{'passed':>10}{'share':>9}")
    for group in groups:
        members = [outcome for outcome in outcomes if outcome.case.group == group]
        passed = sum(outcome.passed for outcome in members)
        print(f"{group:44}{passed:>5}/{len(members):<4}{passed / len(members):>9.1%}")
    stopped = sum(outcome.stopped for outcome in outcomes)
    print(f"{'stopped by itself':44}{stopped:>5}/{len(outcomes):<4}{stopped / len(outcomes):>9.1%}")
    for group in groups:
        for outcome in [o for o in outcomes if o.case.group == group and not o.passed][:failures]:
            print(
                f"\n[{group}] {outcome.case.messages[-1]['content']}\n  wanted: {outcome.case.expected}\n  got:    {outcome.text}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(Path(__file__).parent), help="model directory")
    parser.add_argument("--failures", type=int, default=4, help="failures to print for each group")
    parser.add_argument("--limit", type=int, default=160, help="most tokens of an answer")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quick", type=int, default=1, help="run only every n-th case")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    rng = random.Random(arguments.seed)
    makers = [
        topic_cases,
        comparison_cases,
        small_talk_cases,
        off_topic_cases,
        follow_up_cases,
        long_chat_cases,
        call_cases,
        result_cases,
        unfit_cases,
    ]
    cases = [case for maker in makers for case in maker(rng)]
    for case in cases:
        check_template(tokenizer, case.messages, case.tools)
    report(run(model, tokenizer, cases[:: arguments.quick], arguments.batch, arguments.limit), arguments.failures)


if __name__ == "__main__":
    main()

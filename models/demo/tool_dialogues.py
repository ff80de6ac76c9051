"""Random tool dialogues: tools with varied names and schemas, questions, calls, results, answers.

Everything is drawn anew for each dialogue, so that the model learns to copy names and values
instead of remembering them.
"""

import json
import re
import string
from pathlib import Path

DATA = Path(__file__).parent / "dialogues"
SYLLABLES = """
    ba be bo da de do fa fi ga ka ke ko la le li lo ma me mi mo na ne ni no pa pe ra re ri ro
    sa se ta te ti to va ve vi za zo an en in on ar er or el al os us is um
""".split()


def load_json(name):
    """Reads one data file of the dialogues folder."""
    return json.loads((DATA / name).read_text(encoding="utf-8"))


WORDS = load_json("words.json")
FAMILIES = load_json("tool_families.json")
UNSEEN_FAMILIES = load_json("tool_unseen_families.json")
SLICED_WORDS = sorted(
    {
        word.lower()
        for key, entries in WORDS.items()
        if key != "held_out_cities"
        for entry in entries
        for word in re.findall(r"[A-Za-z]{4,}", entry)
    }
)
CLOSED_KINDS = {"currency", "language", "time", "date", "version"}


def pseudo_word(rng, low=2, high=4):
    """A pronounceable word that means nothing."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(low, high)))


def odd_word(rng):
    """A word from slices of real words, or of random letters; it is spelled with unusual tokens."""
    if rng.random() < 0.3:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 7)))
    words = rng.choices(SLICED_WORDS, k=rng.randint(1, 3))
    starts = [rng.randrange(max(1, len(word) - 2)) for word in words]
    return "".join(word[at : at + rng.randint(2, 5)] for word, at in zip(words, starts))


def odd_spelling(rng, text):
    """The text with some of its words replaced by odd ones, in the same case."""

    def replace(match):
        word = match.group()
        if rng.random() < 0.3:
            return word
        odd = odd_word(rng)
        return odd.upper() if word.isupper() else odd.capitalize() if word[0].isupper() else odd

    return re.sub(r"[A-Za-z]{3,}", replace, text)


def training_value(rng, kind):
    """A value for training; a third of the free texts are spelled oddly, which only copying gets right."""
    value = random_value(rng, kind)
    if kind.startswith(("int:", "enum:", "choice:")) or kind in CLOSED_KINDS or rng.random() > 0.35:
        return value
    return odd_spelling(rng, value)


def random_id(rng):
    """An id in one of several common forms."""
    digits = lambda low, high: "".join(rng.choice(string.digits) for _ in range(rng.randint(low, high)))
    letters = lambda n: "".join(rng.choice(string.ascii_uppercase) for _ in range(n))
    mixed = lambda n: "".join(rng.choice("0123456789abcdef") for _ in range(n))
    form = rng.randrange(7)
    if form == 0:
        return letters(rng.randint(1, 3)) + "-" + digits(2, 5)
    if form == 1:
        return mixed(rng.randint(4, 8))
    if form == 2:
        return rng.choice(["w", "job", "req", "node", "u", "item", "ord", "x", "p"]) + "-" + digits(1, 5)
    if form == 3:
        return letters(2) + digits(3, 6)
    if form == 4:
        return rng.choice(["user", "worker", "order", "task", pseudo_word(rng)]) + "_" + digits(1, 3)
    if form == 5:
        return pseudo_word(rng, 1, 2) + "-" + pseudo_word(rng, 1, 2) + "-" + digits(1, 2)
    return digits(3, 4) + "-" + mixed(4)


def random_path(rng, is_file):
    """An absolute or relative path of up to three folders."""
    parts = [rng.choice(WORDS["folders"]) if rng.random() < 0.6 else pseudo_word(rng) for _ in range(rng.randint(1, 3))]
    path = ("/" if rng.random() < 0.7 else "") + "/".join(parts)
    return path + "/" + random_file(rng) if is_file else path


def random_file(rng):
    """A file name with an ending."""
    stem = rng.choice(WORDS["words"]) if rng.random() < 0.5 else pseudo_word(rng)
    if rng.random() < 0.3:
        stem += rng.choice("-_") + str(rng.randint(1, 99))
    return stem + "." + rng.choice(WORDS["file_ends"])


def random_city(rng, held_out):
    """A real or an invented city; evaluation uses cities that training never saw."""
    if held_out:
        return rng.choice(WORDS["held_out_cities"])
    if rng.random() < 0.45:
        return rng.choice(WORDS["cities"])
    name = pseudo_word(rng).capitalize()
    return name if rng.random() < 0.75 else name + " " + pseudo_word(rng).capitalize()


def random_name(rng):
    """A first name, known or invented."""
    return rng.choice(WORDS["first_names"]) if rng.random() < 0.5 else pseudo_word(rng).capitalize()


def random_phrase(rng):
    """Two to four lower-case words."""
    return " ".join(rng.choice(WORDS["words"]) for _ in range(rng.randint(1, 3)))


def random_email(rng):
    """An email address."""
    user = rng.choice([random_name(rng).lower(), pseudo_word(rng), random_name(rng).lower() + "." + pseudo_word(rng)])
    domain = (
        rng.choice(WORDS["email_domains"])
        if rng.random() < 0.6
        else pseudo_word(rng) + rng.choice([".com", ".net", ".org"])
    )
    return f"{user}@{domain}"


def random_integer(rng, low, high):
    """An integer whose number of digits is spread evenly."""
    digits = rng.randint(len(str(max(low, 1))), len(str(high)))
    return min(max(rng.randint(10 ** (digits - 1), 10**digits - 1), low), high) if low >= 0 else rng.randint(low, high)


def random_service(rng):
    """A service name, sometimes with a suffix."""
    name = rng.choice(WORDS["services"]) if rng.random() < 0.5 else pseudo_word(rng)
    return (
        name + "-" + rng.choice(["api", "v2", "worker", "prod", "eu", pseudo_word(rng)]) if rng.random() < 0.4 else name
    )


SIMPLE_KINDS = {
    "person": random_name,
    "fullname": lambda rng: (
        random_name(rng)
        + " "
        + (rng.choice(WORDS["last_names"]) if rng.random() < 0.5 else pseudo_word(rng).capitalize())
    ),
    "email": random_email,
    "id": random_id,
    "anyid": lambda rng: str(rng.randint(1, 99999)) if rng.random() < 0.3 else random_id(rng),
    "phrase": random_phrase,
    "quoted": lambda rng: (
        rng.choice(WORDS["phrases"]) if rng.random() < 0.5 else random_phrase(rng) + " " + rng.choice(WORDS["words"])
    ),
    "task": lambda rng: rng.choice(WORDS["task_verbs"]) + " " + rng.choice(WORDS["task_objects"]),
    "time": lambda rng: f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}",
    "date": lambda rng: f"20{rng.randint(24, 29)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
    "currency": lambda rng: rng.choice(WORDS["currencies"]),
    "ticker": lambda rng: "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(2, 5))),
    "language": lambda rng: rng.choice(WORDS["languages"]),
    "place": lambda rng: (
        rng.choice(["Casa", "Chez", "Cafe", "Villa", "Bistro", "The Old", "Golden", "Little"])
        + " "
        + pseudo_word(rng).capitalize()
    ),
    "room": lambda rng: rng.choice(WORDS["rooms"]),
    "path": lambda rng: random_path(rng, True),
    "dir": lambda rng: random_path(rng, False),
    "file": random_file,
    "service": random_service,
    "host": lambda rng: (
        rng.choice(["gpu", "node", "host", "srv", pseudo_word(rng)]) + rng.choice(["-", ""]) + str(rng.randint(1, 99))
    ),
    "metric": lambda rng: (
        rng.choice(WORDS["metrics"])
        if rng.random() < 0.6
        else pseudo_word(rng) + "_" + rng.choice(["total", "seconds", "bytes"])
    ),
    "channel": lambda rng: (
        rng.choice(["#", ""])
        + (rng.choice(["general", "ops", "random", "infra", "alerts"]) if rng.random() < 0.4 else pseudo_word(rng))
    ),
    "version": lambda rng: rng.choice(["v", ""]) + f"{rng.randint(0, 9)}.{rng.randint(0, 30)}.{rng.randint(0, 9)}",
    "pseudo": lambda rng: pseudo_word(rng) + " " + pseudo_word(rng),
}


def random_value(rng, kind, held_out=False):
    """A value of a kind such as `city`, `int:1:9` or `enum:on|off`."""
    if kind == "city":
        return random_city(rng, held_out)
    if kind.startswith("int:"):
        _, low, high = kind.split(":")
        return random_integer(rng, int(low), int(high))
    if kind.startswith(("enum:", "choice:")):
        return rng.choice(kind.split(":")[1].split("|"))
    return SIMPLE_KINDS[kind](rng)


def styled_name(rng, name):
    """A tool name in a random style: as it is, camelCase, or with a prefix or suffix."""
    roll = rng.random()
    if roll < 0.15:
        head, *tail = name.split("_")
        return head + "".join(part.capitalize() for part in tail)
    if roll < 0.22:
        return rng.choice(["api_", "my_", "do_", "tool_", pseudo_word(rng) + "_"]) + name
    if roll < 0.28:
        return name + rng.choice(["_v2", "_tool", "_api", "_now", "_" + pseudo_word(rng)])
    if roll < 0.65:
        return invented_name(rng)
    return name


def invented_name(rng):
    """A tool name of two or three random words, which can only be copied from the list of tools."""
    pool = (
        WORDS["words"] + [noun for noun in WORDS["nouns"] if " " not in noun] + WORDS["verbs"] + WORDS["action_verbs"]
    )
    parts = [
        rng.choice([pseudo_word, odd_word])(rng) if rng.random() < 0.4 else rng.choice(pool)
        for _ in range(rng.randint(2, 3))
    ]
    return "_".join(parts)


def property_schema(rng, kind, about):
    """The JSON schema of one argument."""
    schema = {"type": "integer" if kind.startswith("int:") else "string"}
    if rng.random() < 0.45:
        schema["description"] = rng.choice(about)
    if kind.startswith("enum:"):
        values = kind.split(":")[1].split("|")
        rng.shuffle(values)
        schema["enum"] = values
    return schema


def make_tool(rng, family, held_out=False):
    """Builds a tool of a family: (tool, {parameter key: argument name})."""
    name = rng.choice(family["held_out_names"]) if held_out else styled_name(rng, rng.choice(family["names"]))
    keys = list(family["params"])
    if rng.random() < 0.3:
        rng.shuffle(keys)
    argument_names, properties, required = {}, {}, []
    for key in keys:
        param = family["params"][key]
        argument_name = rng.choice([n for n in param["names"] if n not in properties])
        argument_names[key] = argument_name
        properties[argument_name] = property_schema(rng, param["kind"], param["about"])
        if not param.get("optional"):
            required.append(argument_name)
    parameters = {"type": "object", "properties": properties, "required": required}
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    return {
        "type": "function",
        "function": {"name": name, "description": rng.choice(family["about"]), "parameters": parameters},
    }, argument_names


def noun_family(rng):
    """An invented family around a noun, so that tool names are never exhausted."""
    noun = rng.choice(WORDS["nouns"]) if rng.random() < 0.7 else pseudo_word(rng)
    action = rng.random() < 0.4
    verb = rng.choice(WORDS["action_verbs"] if action else WORDS["verbs"])
    label = noun.replace(" ", "_")
    kind = rng.choice(["anyid", "anyid", "fullname", "file", "service"])
    key = {"anyid": "id", "fullname": "name", "file": "file", "service": "name"}[kind]
    phrase = {"lookup": "look up"}.get(verb, verb)
    params = {key: {"names": [f"{label}_{key}", key, label], "kind": kind, "about": [f"The {noun}", f"Which {noun}"]}}
    questions = [
        f"{phrase} {noun} {{{key}}}",
        f"{phrase} the {noun} {{{key}}}",
        f"please {phrase} {noun} {{{key}}}",
        f"can you {phrase} the {noun} {{{key}}}",
        f"I want to {phrase} {noun} {{{key}}}",
    ]
    if not action:
        questions += [
            f"what is the state of {noun} {{{key}}}",
            f"what do you know about {noun} {{{key}}}",
            f"{noun} {{{key}}}",
            f"show me {noun} {{{key}}}",
            f"details of the {noun} {{{key}}}",
        ]
    add_extra_parameter(rng, params, questions)
    result = {name: noun_result_kind(rng) for name in rng.sample(WORDS["result_keys"], rng.randint(1, 3))}
    return {
        "names": [f"{verb}_{label}", f"{label}_{verb}", f"{verb}_{label}_by_{key}"],
        "about": [f"{phrase.capitalize()} a {noun}", f"{phrase.capitalize()} the {noun} with this {key}"],
        "params": params,
        "questions": questions,
        "result": result,
        "answers": [noun_answer(rng, result)],
    }


def add_extra_parameter(rng, params, questions):
    """Sometimes gives an invented tool a second argument, an integer or an enum."""
    roll = rng.random()
    if roll < 0.3:
        key = rng.choice(
            [
                "count",
                "limit",
                "days",
                "weeks",
                "copies",
                "hours",
                "page",
                "floor",
                "version",
                "level",
                "minutes",
                "times",
                "size",
            ]
        )
        params[key] = {"names": [key], "kind": "int:1:999", "about": [f"The {key}"]}
        endings = [f" with {key} {{{key}}}", f" for {{{key}}} {key}", f", {{{key}}} {key}", f", {key} {{{key}}}"]
    elif roll < 0.55:
        key = rng.choice(
            ["mode", "format", "kind", "role", "type", "side", "color", "status", "size", "target", "zone"]
        )
        pool = WORDS["result_words"] + [pseudo_word(rng) for _ in range(10)]
        params[key] = {
            "names": [key],
            "kind": "enum:" + "|".join(rng.sample(pool, rng.randint(2, 4))),
            "about": [f"The {key}"],
        }
        endings = [
            f" with {key} {{{key}}}",
            f" as {{{key}}}",
            f", {key} {{{key}}}",
            f" in the {{{key}}} {key}",
            f" with the {key} {{{key}}}",
        ]
    else:
        return
    questions[:] = [question + rng.choice(endings) for question in questions]


def noun_result_kind(rng):
    """The kind of one value in the result of an invented tool."""
    return rng.choice(
        ["int:0:9999", "int:0:99", "choice:" + "|".join(WORDS["result_words"]), "fullname", "pseudo", "id"]
    )


def noun_answer(rng, result):
    """An answer that names every key of a result."""
    parts = [f"the {key} is {{{key}}}" for key in result]
    sentence = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return sentence[0].upper() + sentence[1:] + "."


def random_family(rng):
    """A family for training: a written one, or one invented on the spot."""
    return rng.choice(FAMILIES) if rng.random() < 0.65 else noun_family(rng)


def placeholders(question):
    """The parameter keys that a question mentions."""
    return [field for _, field, _, _ in string.Formatter().parse(question) if field]


def fill_question(rng, question, values, family):
    """Puts values into a question; quoted texts get quotation marks."""
    mark = rng.choice(["'", '"'])
    shown = {
        key: f"{mark}{value}{mark}" if family["params"][key]["kind"] == "quoted" else value
        for key, value in values.items()
    }
    return question.format(**shown)


def distractors(rng, count, avoid_names=(), avoid_family=None):
    """Tools of other families than the one asked for, with other names."""
    tools, names = [], set(avoid_names)
    while len(tools) < count:
        family = random_family(rng)
        tool = make_tool(rng, family)[0]
        if family is not avoid_family and tool["function"]["name"] not in names:
            names.add(tool["function"]["name"])
            tools.append(tool)
    return tools


def call_message(name, arguments):
    """An assistant message with one tool call."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def tool_case(rng, family=None, held_out=False, polish=lambda rng, text: text, tool_count=None):
    """One question with tools: (tools, question, name, arguments, family, values)."""
    family = family or random_family(rng)
    tool, argument_names = make_tool(rng, family, held_out)
    template = rng.choice(family["held_out"] if held_out else family["questions"])
    if not held_out:
        template = polish(rng, template)
    used = set(placeholders(template))
    values = {
        key: random_value(rng, family["params"][key]["kind"], True)
        if held_out
        else training_value(rng, family["params"][key]["kind"])
        for key in family["params"]
        if key in used
    }
    avoid_equal_enums(rng, family, values)
    question = fill_question(rng, template, values, family)
    arguments = {argument_names[key]: values[key] for key in argument_names if key in used}
    count = tool_count or rng.choices([1, 2, 3, 4], [52, 28, 15, 5])[0]
    tools = [tool] + distractors(rng, count - 1, [tool["function"]["name"]], family)
    rng.shuffle(tools)
    return tools, question, tool["function"]["name"], arguments, family, values


def avoid_equal_enums(rng, family, values):
    """Draws again when two enum arguments of one call are equal, as in "miles to miles"."""
    enums = [key for key in values if family["params"][key]["kind"].startswith("enum:")]
    while len(enums) == 2 and values[enums[0]] == values[enums[1]]:
        values[enums[1]] = random_value(rng, family["params"][enums[1]]["kind"])


def result_turns(rng, family, values):
    """The tool message and the assistant's answer from its values."""
    if rng.random() < 0.08:
        error = rng.choice(WORDS["errors"])
        content = rng.choice([json.dumps({"error": error}), f"error: {error}"])
        return [
            {"role": "tool", "content": content},
            {"role": "assistant", "content": f"The tool reported an error: {error}."},
        ]
    result = {key: random_value(rng, kind) for key, kind in family["result"].items()}
    answer = rng.choice(family["answers"]).format(**{**values, **result})
    return [{"role": "tool", "content": result_text(rng, result)}, {"role": "assistant", "content": answer}]


def result_text(rng, result):
    """A result as JSON with or without spaces, in any order, or as plain lines."""
    items = list(result.items())
    rng.shuffle(items)
    roll = rng.random()
    if roll < 0.7:
        return json.dumps(dict(items), ensure_ascii=False)
    if roll < 0.85:
        return json.dumps(dict(items), ensure_ascii=False, separators=(",", ":"))
    return ", ".join(f"{key}: {value}" for key, value in items)


def tool_turns(rng, polish):
    """The turns of one complete tool use: (tools, messages)."""
    tools, question, name, arguments, family, values = tool_case(rng, polish=polish)
    messages = [{"role": "user", "content": question}, call_message(name, arguments)]
    if rng.random() < 0.75:
        messages += result_turns(rng, family, values)
    return tools, messages


def second_call(rng, tools_and_family, polish):
    """A further question for a tool that is already listed, with new values."""
    tool, argument_names, family = tools_and_family
    template = polish(rng, rng.choice(family["questions"]))
    used = set(placeholders(template))
    values = {key: training_value(rng, family["params"][key]["kind"]) for key in family["params"] if key in used}
    avoid_equal_enums(rng, family, values)
    arguments = {argument_names[key]: values[key] for key in argument_names if key in used}
    question = fill_question(rng, template, values, family)
    return [{"role": "user", "content": question}, call_message(tool["function"]["name"], arguments)] + result_turns(
        rng, family, values
    )


def repeated_use(rng, polish):
    """Two to four questions for the same set of tools: (tools, messages)."""
    listed, names = [], set()
    while len(listed) < rng.randint(1, 3):
        family = random_family(rng)
        tool, argument_names = make_tool(rng, family)
        if tool["function"]["name"] not in names:
            names.add(tool["function"]["name"])
            listed.append((tool, argument_names, family))
    messages = []
    for _ in range(rng.randint(2, 4)):
        messages += second_call(rng, rng.choice(listed), polish)
    return [tool for tool, _, _ in listed], messages


def shuffled_keys(rng, value):
    """The same JSON with its object keys in another order, as some clients send it."""
    if isinstance(value, dict):
        items = [(key, shuffled_keys(rng, item) if key != "properties" else value[key]) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return value


def tool_writer(rng):
    """A function that writes a tool as JSON in one of the styles that servers produce."""
    roll = rng.random()
    if roll < 0.1:
        return lambda tool: json.dumps(tool, ensure_ascii=False, separators=(",", ":"))
    if roll < 0.25:
        return lambda tool: json.dumps(shuffled_keys(rng, tool), ensure_ascii=False)
    return lambda tool: json.dumps(tool, ensure_ascii=False)

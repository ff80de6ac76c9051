"""Random JSON schemas of which every value has a bounded length, and a parser of JSON's beginnings."""

import random
import string

# Far above what numbers without bounds and parts of formats without bounds reach.
NUMBER_BYTES, FORMAT_BYTES = 60, 80
FORMATS = ["date", "time", "date-time", "uuid", "ipv4"]
PATTERNS = [("^[a-z]{1,8}$", 8), ("^[A-Z]{2}-[0-9]{3,5}$", 8), ("^(yes|no|perhaps)$", 7)]


class Schemas:
    """Draws schemas. `draw` gives one, and the most bytes that a value of it can have."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def draw(self):
        """An object at the top, as clients ask for it."""
        schema, length = self.object(depth=3)
        if self.rng.random() < 0.3:
            return self.with_reference(schema, length)
        return schema, length

    def any(self, depth):
        flat = [self.enum, self.integer, self.number, self.string, self.pattern, self.format]
        flat += [self.boolean, self.nothing, self.constant]
        nested = [self.object, self.array, self.union]
        if depth > 0 and self.rng.random() < 0.4:
            return self.rng.choice(nested)(depth - 1)
        return self.rng.choice(flat)()

    def object(self, depth):
        properties, length = {}, 2
        for _ in range(self.rng.randint(1, 4)):
            name = self.word()
            schema, part = self.any(depth)
            if name not in properties:
                properties[name] = schema
                length += part + len(name) + 6
        names = list(properties)
        required = [name for name in names if self.rng.random() < 0.7]
        schema = {"type": "object", "properties": properties, "required": required}
        return schema | {"additionalProperties": False}, length

    def array(self, depth):
        items, part = self.any(depth)
        most = self.rng.randint(1, 3)
        least = self.rng.randint(0, most)
        schema = {"type": "array", "items": items, "minItems": least, "maxItems": most}
        return schema, 2 + most * (part + 2)

    def union(self, depth):
        options = [self.any(depth) for _ in range(self.rng.randint(2, 3))]
        return {"anyOf": [schema for schema, _ in options]}, max(part for _, part in options)

    def with_reference(self, schema, length):
        """A tree of three levels, each in a definition of its own that the one above refers to."""
        leaf, part = self.any(0)
        node = {"type": "object", "required": ["value"], "additionalProperties": False}
        deep = {"value": leaf}
        inner = deep | {"next": {"$ref": "#/$defs/deep"}}
        schema["properties"]["tree"] = {"$ref": "#/$defs/inner"}
        schema["$defs"] = {
            "deep": node | {"properties": deep},
            "inner": node | {"properties": inner},
        }
        return schema, length + 2 * (part + 24) + 24

    def enum(self):
        values = [self.word() for _ in range(self.rng.randint(1, 4))] + [7, None, True]
        values = self.rng.sample(values, self.rng.randint(1, len(values)))
        return {"enum": values}, 30

    def constant(self):
        return {"const": self.word()}, 14

    def integer(self):
        low = self.rng.randint(-1000, 1000)
        bounds = {"minimum": low, "maximum": low + self.rng.randint(0, 5000)}
        schema = {"type": "integer"} | (bounds if self.rng.random() < 0.7 else {})
        return schema, NUMBER_BYTES

    def number(self):
        bounds = {"minimum": -5, "maximum": 120.5} if self.rng.random() < 0.5 else {}
        return {"type": "number"} | bounds, NUMBER_BYTES

    def string(self):
        most = self.rng.randint(1, 12)
        # A character may be written as six: \\u0000.
        return {"type": "string", "maxLength": most}, 2 + 6 * most

    def pattern(self):
        pattern, most = self.rng.choice(PATTERNS)
        return {"type": "string", "pattern": pattern}, 2 + most

    def format(self):
        return {"type": "string", "format": self.rng.choice(FORMATS)}, FORMAT_BYTES

    def boolean(self):
        return {"type": "boolean"}, 5

    def nothing(self):
        return {"type": ["null", "boolean"]}, 5

    def word(self):
        return "".join(self.rng.choices(string.ascii_lowercase, k=self.rng.randint(2, 10)))


def is_beginning_of_json(text):
    """Whether more text could make `text` a JSON value: a pushdown automaton, character by character."""
    stack, state, rest = [], "value", ""
    for character in text:
        if rest:
            if character != rest[0]:
                return False
            rest = rest[1:]
            continue
        if state == "string" or state == "key":
            if character == "\\":
                state = ("escape", state)
            elif character == '"':
                state = "after" if state == "string" else "colon"
            elif ord(character) < 0x20:
                return False
            continue
        if isinstance(state, tuple):
            kind, back = state[0], state[-1]
            if kind == "escape" and character == "u":
                state = ("hex", 4, back)
            elif kind == "escape" and character in '"\\/bfnrt':
                state = back
            elif kind == "hex" and character in string.hexdigits:
                state = ("hex", state[1] - 1, back) if state[1] > 1 else back
            else:
                return False
            continue
        if state.startswith("number"):
            follows = NUMBER[state].get(kind_of(character))
            if follows:
                state = follows
                continue
            if state not in NUMBER_ENDS:
                return False
            state = "after"
        if character in " \t\n\r":
            continue
        if state in ("value", "first"):
            if character == "]" and state == "first" and stack:
                stack.pop()
                state = "after"
            elif character == "{":
                stack.append("}")
                state = "first key"
            elif character == "[":
                stack.append("]")
                state = "first"
            elif character == '"':
                state = "string"
            elif character in "tfn":
                rest, state = {"t": "rue", "f": "alse", "n": "ull"}[character], "after"
            elif character == "-":
                state = "number sign"
            elif character in string.digits:
                state = "number zero" if character == "0" else "number whole"
            else:
                return False
        elif state in ("first key", "next key"):
            if character == '"':
                state = "key"
            elif character == "}" and state == "first key":
                stack.pop()
                state = "after"
            else:
                return False
        elif state == "colon":
            if character != ":":
                return False
            state = "value"
        elif state == "after":
            if not stack:
                return False
            if character == ",":
                state = "next key" if stack[-1] == "}" else "value"
            elif character == stack[-1]:
                stack.pop()
            else:
                return False
    return True


def kind_of(character):
    """How the grammar of numbers sees a character."""
    if character in string.digits:
        return "0" if character == "0" else "1"
    return {".": ".", "e": "e", "E": "e", "+": "+", "-": "+"}.get(character)


NUMBER = {
    "number sign": {"0": "number zero", "1": "number whole"},
    "number zero": {".": "number point", "e": "number e"},
    "number whole": {"0": "number whole", "1": "number whole", ".": "number point", "e": "number e"},
    "number point": {"0": "number fraction", "1": "number fraction"},
    "number fraction": {"0": "number fraction", "1": "number fraction", "e": "number e"},
    "number e": {"0": "number exponent", "1": "number exponent", "+": "number e sign"},
    "number e sign": {"0": "number exponent", "1": "number exponent"},
    "number exponent": {"0": "number exponent", "1": "number exponent"},
}
NUMBER_ENDS = {"number zero", "number whole", "number fraction", "number exponent"}

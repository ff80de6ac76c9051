"""The rows of the table."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """What was found, row by row."""

    rows: list = field(default_factory=list)
    is_sound: bool = True

    def figure(self, part, what, figure):
        """A measurement."""
        self.add(part, what, figure, "")

    def goal(self, part, what, figure, value, at_least=None, at_most=None):
        """A measurement whose `value` has a goal, if it has one."""
        if at_least is None and at_most is None:
            return self.figure(part, what, figure)
        is_met = value >= at_least if at_most is None else value <= at_most
        goal = f"at least {at_least}" if at_most is None else f"at most {at_most}"
        self.add(part, what, figure, f"{goal}: {'met' if is_met else '**missed**'}")

    def check(self, part, what, is_right, figure):
        """Something that must be so."""
        self.is_sound &= is_right
        self.add(part, what, figure, "right" if is_right else "**WRONG**")

    def not_run(self, part, why):
        """A part that there is no result of."""
        self.is_sound = False
        self.add(part, "", f"not run: {why}", "")

    def add(self, *cells):
        self.rows.append([str(cell).replace("|", "/").replace("\n", " ") for cell in cells])
        print(": ".join(cell for cell in self.rows[-1] if cell), flush=True)

    def print(self):
        print("\n| Part | What | Found | Goal |\n|---|---|---|---|")
        for row in self.rows:
            print("| " + " | ".join(row) + " |")

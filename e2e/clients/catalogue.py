"""The clients that are run, and what each needs installed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Client:
    """One client in one version: a folder of tests and the packages to run them with."""

    name: str
    # The package whose version the table shows.
    package: str
    # Folder of the tests, beside this file. Several clients may share one.
    suite: str
    # Requirements file, relative to this folder.
    requirements: str
    # Constraints file that pins what the requirements bring along, relative to this folder.
    constraints: str | None = None
    # Whether `make test` runs it too.
    quick: bool = False
    # More arguments for pytest.
    options: tuple = ()


NODE = "requirements-node.txt"

# LangChain's suite is asynchronous, and all its models share one HTTP client and so one loop.
ONE_LOOP = ("--asyncio-mode=auto", "--override-ini=asyncio_default_test_loop_scope=session")


def python(name, package, requirements="requirements.txt", suite=None, options=()):
    """A client whose folder has its requirements and their constraints."""
    suite = suite or name
    folder = f"{suite}/"
    constraints = folder + requirements.replace("requirements", "constraints")
    return Client(name, package, suite, folder + requirements, constraints, options=options)


CLIENTS = [
    Client(
        "openai-python-3", "openai", "openai-python", "../python/requirements.txt", quick=True
    ),
    Client("openai-node", "openai", "openai-node", NODE, quick=True),
    python("openai-python-2", "openai", "requirements-2.txt", suite="openai-python"),
    Client("ai-sdk", "@ai-sdk/openai-compatible", "ai-sdk", NODE),
    python("langchain", "langchain-openai", options=ONE_LOOP),
    python("instructor", "instructor"),
    python("pydantic-ai", "pydantic-ai-slim"),
    python("litellm", "litellm"),
]

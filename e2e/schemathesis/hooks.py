"""Makes generated requests name the served model, and ask for little. Everything else stays as it is."""

import os

import schemathesis

MODEL = os.environ["STATOR_SERVED_MODEL"]
CHOICES_MAX = 4


@schemathesis.hook
def map_body(context, body):
    """Names that no server knows would all be refused before anything else is looked at."""
    if isinstance(body, dict):
        if isinstance(body.get("model"), str):
            body = {**body, "model": MODEL}
        for name in ("n", "best_of"):
            if isinstance(body.get(name), int) and CHOICES_MAX < body[name] <= 20:
                body = {**body, name: CHOICES_MAX}
    return body


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Half of the names are the served one's."""
    if path_parameters and len(str(path_parameters.get("id", ""))) % 2:
        return {**path_parameters, "id": MODEL}
    return path_parameters

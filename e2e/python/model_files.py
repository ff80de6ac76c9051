"""Copies of model directories, and ways to break them."""

import json
import shutil
import struct

SERVED = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def copy(source, target):
    """The files of a model that serving reads, without what else lies beside them."""
    target.mkdir()
    for name in SERVED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return target


def edit_json(path, **fields):
    """Changes top-level fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(directory, change):
    """Passes the header of `model.safetensors`, a dictionary by tensor name, to `change`."""
    path = directory / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

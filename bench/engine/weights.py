"""Random weights in a safetensors file, in bf16; the same for the same shape."""

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy

SEED = 6
ONE = 0x3F80
THREADS = os.cpu_count() or 1


def write(path, shape):
    """All tensors of a shape, each drawn by itself, so that no more are in memory than there are threads."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dimensions, _ in shape.tensors:
        end = offset + 2 * math.prod(dimensions)
        header[name] = {"dtype": "BF16", "shape": list(dimensions), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    # Data begins where vectors may be read from.
    text += b" " * (-(8 + len(text)) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for group in batched(enumerate(shape.tensors), THREADS):
            for bits in drawn_together(group):
                file.write(bits)


def drawn_together(group):
    """The bits of several tensors, in their order."""
    draw = lambda tensor: bf16(tensor[0], math.prod(tensor[1][1]), tensor[1][2])
    # numpy lets other threads run while it draws.
    with ThreadPoolExecutor(THREADS) as threads:
        yield from threads.map(draw, group)


def batched(items, size):
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def bf16(number, elements, deviation):
    """The bits of so many normal numbers, rounded to nearest even."""
    if deviation is None:
        return numpy.full(elements, ONE, numpy.uint16)
    generator = numpy.random.Generator(numpy.random.SFC64([SEED, number]))
    values = generator.standard_normal(elements, numpy.float32)
    values *= numpy.float32(deviation)
    bits = values.view(numpy.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(numpy.uint16)


def read(path):
    """Each tensor's bits, `{name: uint16 array}`, mapped and not read."""
    size, header = header_of(path)
    data = numpy.memmap(path, numpy.uint16, "r", offset=8 + size)
    return {name: data[entry["data_offsets"][0] // 2 : entry["data_offsets"][1] // 2].reshape(entry["shape"])
            for name, entry in header.items() if name != "__metadata__"}


def tensor_bytes(path):
    """Bytes of all tensors of a file."""
    return path.stat().st_size - 8 - header_of(path)[0]


def header_of(path):
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return size, json.loads(file.read(size))

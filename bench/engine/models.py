"""Makes models of real shapes with random weights, in `target/bench-models`: Hugging Face directories
in bf16, and GGUF files of the same weights. What is there already stays; each is made in a few seconds.

    target/bench-engine/bin/python bench/engine/models.py [SHAPE[:TYPE,...]]...

Directories need numpy, and files the package gguf too. Without arguments, what the other scripts measure. A type is BF16, F16, Q8_0, Q4_0, Q5_0 (every matrix in
it), or one that llama-quantize knows, such as Q4_K_M: made of the BF16 file by what LLAMA_QUANTIZE names.
"""

import subprocess
import sys
from pathlib import Path

import vocabulary
import weights
from shapes import SHAPES

MODELS = Path("target/bench-models")
MEASURED = ("qwen2-0.5b:BF16,Q8_0,Q4_0", "llama-1b:BF16,Q4_K_M", "llama-15m:BF16,Q8_0")


def directory(shape):
    """The Hugging Face directory of a shape, made if it is not there."""
    path = MODELS / shape.name
    if not path.is_dir():
        making = MODELS / f"{shape.name}.part"
        making.mkdir(parents=True, exist_ok=True)
        say(path)
        vocabulary.write(making, shape)
        weights.write(making / "model.safetensors", shape)
        making.rename(path)
    return path


def file(shape, type_name):
    """The GGUF file of a shape in a type, made if it is not there."""
    import gguf_file

    path = MODELS / f"{shape.name}-{type_name}.gguf"
    if not path.exists():
        source = directory(shape)
        making = path.with_suffix(".part")
        if type_name in gguf_file.TYPES:
            say(path)
            gguf_file.write(making, shape, source, type_name)
        else:
            quantized_from = file(shape, "BF16")
            say(path)
            quantize(quantized_from, making, type_name)
        making.rename(path)
    return path


def quantize(source, target, type_name):
    import peer

    command = [peer.binary("LLAMA_QUANTIZE"), str(source), str(target), type_name]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")


def tensor_bytes(model):
    """Bytes of the tensors of a directory or a GGUF file: what a step reads, where it reads all."""
    if model.is_dir():
        return weights.tensor_bytes(model / "model.safetensors")
    import gguf_file

    return gguf_file.tensor_bytes(model)


def say(path):
    print(f"making {path}", file=sys.stderr, flush=True)


def main():
    if {"-h", "--help"} & set(sys.argv):
        raise SystemExit(__doc__)
    for wanted in sys.argv[1:] or MEASURED:
        name, _, types = wanted.partition(":")
        if name not in SHAPES:
            raise SystemExit(f"no shape is called {name}; there are {', '.join(SHAPES)}")
        print(directory(SHAPES[name]))
        for type_name in filter(None, types.split(",")):
            print(file(SHAPES[name], type_name))


if __name__ == "__main__":
    main()

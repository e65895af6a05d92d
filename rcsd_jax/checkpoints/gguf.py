"""A GGUF file as a Hugging Face directory, which is what runs read. transformers knows each family's names and orders of tensors in it."""

from __future__ import annotations

import importlib
import json
import pathlib
from typing import Any

from rcsd_jax.checkpoints.hf_config import config_of_fields
from rcsd_jax.host.errors import UserError, first_line
from rcsd_jax.host.replaced_directory import replaced_directory


def convert(file: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes a GGUF file's configuration, weights in float32, tokenizer and chat template into a folder.

    Args:
      file: of a model; its weights may be quantized.
      folder: new, or empty.

    Raises:
      UserError: the file cannot be read, it holds a model that is not supported, or the folder is not empty or cannot be written.
        Then the folder is as it was.
    """
    if not file.is_file():
        raise UserError("no such file", remedy="name a GGUF file", file=file)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("is there already", remedy="name a new folder", file=folder)
    try:
        import gguf  # late: extras, and torch takes seconds
        import transformers

        for needed in ("torch", "accelerate"):
            importlib.import_module(needed)
    except ImportError as error:
        remedy = "pip install 'rcsd_jax[gguf]'"
        raise UserError(f"{error.name} is not installed, which reads GGUF files", remedy=remedy, file=file) from None
    other = "take the model's directory with config.json and safetensors files"
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError) as error:
        remedy = "name a GGUF file, and download it again if it is one"
        raise UserError(f"not a whole GGUF file ({first_line(error)})", remedy=remedy, file=file) from error
    tensors = {tensor.name for tensor in reader.tensors}
    if "rope_freqs.weight" in tensors or any(field.endswith(".rope.scaling.factor") for field in reader.fields):
        raise UserError("its RoPE is scaled, which transformers leaves out", remedy=other, file=file)
    # The whole path: a name would first be looked for where the command runs.
    source: dict[str, Any] = dict(gguf_file=str(file.absolute()), local_files_only=True)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **source)
        source |= dict(dtype="float32", output_loading_info=True)
        found: Any = transformers.AutoModelForCausalLM.from_pretrained(file.parent, **source)
    except Exception as error:  # bare Exception is what the tokenizers package raises
        problem = f"transformers cannot read it ({type(error).__name__}: {first_line(error)})"
        raise UserError(problem, remedy=other, file=file) from error
    model, info = found
    if info["missing_keys"]:  # transformers would leave them random
        raise UserError("is not in it", remedy=other, file=file, field=min(info["missing_keys"]))
    # Its weights are plain numbers now.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    config_of_fields(json.loads(model.config.to_json_string()), file, dtype="float32")
    try:
        with replaced_directory(folder.absolute()) as partial:
            tokenizer.save_pretrained(partial)
            model.save_pretrained(partial)
    except OSError as error:
        remedy = "make room there, or name another folder"
        raise UserError(f"cannot be written ({first_line(error)})", remedy=remedy, file=folder) from error

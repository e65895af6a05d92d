"""What `--help` prints."""

from __future__ import annotations

import sys
import textwrap

from absl import flags

from rcsd_jax.cli import shipped_configs
from rcsd_jax.settings import sizes

_WIDTH = 120


def help_text(usage: str) -> str:
    """What `--help` prints: usage, flags, config files and their variants, sizes, and where the settings are."""

    def paragraph(text: str, indent: int) -> str:
        return textwrap.fill(text, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)

    of_program = {f.name: f for m, of in flags.FLAGS.flags_by_module_dict().items() if _is_ours(m) for f in of}
    parts = [usage.strip().replace("`", ""), "", "Flags:"]
    for name, flag in of_program.items():
        default = "" if flag.default in (None, False) else f" Default: {flag.default}."
        parts += [f"  --{'[no]' if flag.boolean else ''}{name}", paragraph(f"{flag.help}{default}", 6)]
    parts += [
        "  --help, --helpfull, --version",
        paragraph("This text; the flags of all libraries too; the version.", 6),
    ]
    parts += ["", "Config files, --config=NAME or FILE, and their variants, --config=NAME:VARIANT:"]
    for name, (about, variants) in shipped_configs.variants().items():
        parts += [f"  {name}", paragraph(about, 6)]
        if variants:
            parts.append(paragraph(f"Variants: {', '.join(variants)}", 6))
    slices = sorted({s for table in (sizes.LORA, sizes.FULL) for of_size in table.values() for s in of_size})
    taught = [f"{size},from_{teacher.rpartition('_')[2]}" for size, teacher in sizes.FROM]
    of_sizes = (
        f"Sizes, to be joined to a variant of stage1 or stage2 by commas, as in --config=stage2:qwen3_8b,full,v5p_2x2x2: "
        f"{', '.join(sizes.MODELS)}; full (for LoRA otherwise); {', '.join(slices)}; "
        f"{', '.join(taught)}. "
        "Variants of stage1, stage2 and evaluate may end with non_thinking or student_non_thinking."
    )
    settings = (
        "Every setting is a flag, such as --config.optimizer.learning_rate=1e-5, and of a config of several stages "
        "--config.stage2.optimizer.learning_rate=1e-5. docs/configuration.md and rcsd_jax/settings/keys.py list and explain them."
    )
    return "\n".join([*parts, "", paragraph(of_sizes, 0), "", paragraph(settings, 0)])


def _is_ours(module: str) -> bool:
    """Whether flags of a module are a program's own; what runs as a program has its file for a name."""
    return module.startswith("rcsd_jax.") or module == sys.argv[0]

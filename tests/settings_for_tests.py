"""Configs as tests use them: with no more keys set than a test reads, and by dotted keys."""

from rcsd_jax.settings.unpack import unpack


def settings_of(config):
    """The settings of a stage's config; a path that it lacks gets some name."""
    config = config.copy_and_resolve_references()
    config.model.path, config.data.path = config.model.path or "model", config.data.path or "rows.jsonl"
    config.rubric.writer = config.rubric.writer or "writer"
    return unpack(config)


def value_of(config, key):
    """The value of a dotted key; of a section, the section."""
    for part in key.split("."):
        config = config[part]
    return config

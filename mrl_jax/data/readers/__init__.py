"""File formats and archives, read with care: records of rows, pinned artefacts, prepared TFDS builders."""

"""File formats and archives, read with care: records, arrays, images, pinned artefacts, prepared TFDS builders."""

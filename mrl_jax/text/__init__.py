"""From texts to token ids: tokenizers, files of them that may come from anywhere, several texts in a row."""

"""From texts to arrays of token ids: tokenizers, untrusted tokenizer.json files, several texts packed into a row."""

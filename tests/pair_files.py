"""Pairs as rows of files, of every kind and broken in every way: read into memory and streamed."""

UNSCORED = [{"anchor": "a", "positive": "A"}, {"anchor": "b", "positive": "B"}, {"anchor": "a", "positive": "B"}]
HARD = [{"query": "x", "answer": "X", "negative": "Y", "negative_2": "Z"}]
SCORED = [
    {"sentence1": "one, 1", "sentence2": 'a "1"\nor so', "score": 4.5},
    {"sentence1": "ö", "sentence2": "o", "score": 0},
]
TEST = [{"anchor": "q", "positive": "A"}, {"anchor": "q", "positive": "A"}, {"anchor": "r", "positive": "q"}]

ONE = '{"anchor": "a", "positive": "A"}\n'
BROKEN = {  # file name: content, what the sentence must say
    "empty.jsonl": ("", "data.train=.*empty.jsonl is empty"),
    "header_only.csv": ("anchor,positive\n", "is empty"),
    "one_column.csv": (
        "anchor\na\n",
        r"one_column.csv has the columns anchor; allowed are anchor \(or query, question\)",
    ),
    "one_key.jsonl": (ONE + '{"anchor": "a"}\n', r"line 2 has the columns anchor; allowed are"),
    "no_score.tsv": ("sentence1\tsentence2\na\tb\n", "has the columns sentence1, sentence2; allowed are .* and score"),
    "both.csv": ("anchor,query,positive\na,b,c\n", "has the columns anchor and query, which mean the same"),
    "score.csv": ("anchor,positive,score\na,b,1\n", "allowed are"),
    "short.csv": ("anchor,positive\na\n", "line 2: the row has no positive"),
    "blank.csv": ("anchor,positive\na,b\n ,b\n", "line 3: anchor is empty"),
    "null.jsonl": (ONE[:-2] + ', "negative": null}\n', "line 1: the row has no negative"),
    "number.jsonl": ('{"anchor": 5, "positive": "A"}\n', "line 1: anchor must be a string, got 5"),
    "half.jsonl": ('{"anchor": "\\ud83d", "positive": "A"}\n', "line 1: anchor holds half of a surrogate pair"),
    "mixed.jsonl": (
        ONE + '{"sentence1": "a", "sentence2": "b", "score": 1}\n',
        "line 2: the row has sentence1, sentence2, score; those before have anchor, positive",
    ),
    "fewer.jsonl": (ONE[:-2] + ', "negative": "n"}\n' + ONE, "line 2: the row has anchor, positive; those before have"),
    "nan.csv": ("text1,text2,score\na,b,1\na,b,nan\n", "line 3: score must be a finite number, got 'nan'"),
    "large.csv": ("text1,text2,score\na,b,1e39\n", "line 2: score must be a finite number"),
    "word.csv": ("text1,text2,score\na,b,high\n", "line 2: score must be a finite number, got 'high'"),
    "true.jsonl": ('{"text1": "a", "text2": "b", "score": true}\n', "line 1: score must be a finite number, got True"),
    "what.xlsx": ("x", "unknown file type .xlsx"),
}

"""Names that are plain texts to people, and something else to one of the readers that they pass through."""

from hypothesis import strategies as st

# As names of classes: to YAML 1.1, YAML 1.2, pandas, JSON or a spreadsheet a number, a truth value, a date or nothing.
CLASSES = (
    *("01", "1", "08", "010", "1e5", "12e4", "1E5", "0x10", "0o7", "0b1", "1_000", "0_", "7-", "1-2", "2026-01-02"),
    *("no", "No", "yes", "on", "off", "y", "n", "null", "NULL", "None", "NA", "nan", "NaN", "true", "True", "inf"),
    *("infinity", "mean", "all", "train", "key", "item", "classes", "a_b", "a-b"),
)
# As datasets these, in lower case.
DATASETS = tuple(name for name in CLASSES if name == name.lower())
# As kinds of defects, stems of files or parts also these.
TEXTS = (
    *CLASSES,
    *(
        ".5",
        "1.0",
        "1:30",
        "#1",
        "a: b",
        "${key}",
        "%41",
        "a&b",
        "a@b",
        "[a]",
        "*",
        "?",
        "'",
        '"',
        "`id`",
        "$HOME",
        "a,b",
    ),
    *("~", "<<", "!x", "&a", "{}", "é", "e\u0301", "漢字", "ß", "𝟘", "a b", " a", "a ", "--help", "<b>", "a;b", "|"),
)
class_names = st.one_of(
    st.sampled_from(CLASSES), st.from_regex(r"\A[0-9abeExonyN][0-9aeExobfN_-]{0,6}\Z", fullmatch=True)
)
printable = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)
texts = st.one_of(st.sampled_from(TEXTS), printable)

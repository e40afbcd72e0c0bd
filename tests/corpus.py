"""Varied texts for tests of tokenizers: scripts, emoji, code, whitespace, look-alikes of special tokens. Seeded."""

from __future__ import annotations

import random
from collections.abc import Sequence

SAMPLES = [
    "Once upon a time there was a small cat.", "The quick brown fox jumps over the lazy dog!",
    "Tom and Lily went home; it's 3 o'clock, and WE'LL SEE what they'd do.",
    "Der Hund läuft schnell über die Straße.", "L'été, le garçon mange une crème brûlée.",
    "El niño comió piñas.", "tiếng Việt có dấu", "Привет, как дела сегодня?", "Γειά σου Κόσμε", "שלום עולם",
    "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好,世界!今天天气很好。", "こんにちは世界、元気ですか",
    "안녕하세요 세계", "ქართული ენა", "Հայերեն", "አማርኛ ቋንቋ", "ਪੰਜਾਬੀ ਭਾਸ਼ਾ", "தமிழ் மொழி",
    "def f(x):\n    return x ** 2  # square\n", "for (int i = 0; i < n; ++i) { a[i] += 1; }",
    "class A(B):\n\tdef __init__(self, *args, **kwargs):\n\t\tsuper().__init__()\n\n\n",
    "SELECT * FROM t WHERE a>='x';",
    '{"key": [1, 2.5, null], "other": {"nested": true}}', "http://a.b/c?d=e&f#g",
    "x_1.foo(bar).baz[qux]@home #tag $5.00",
    "1234567890 3.14159 1e-5 0x1F 1,000,000 2024-01-31 ٣٤٥ Ⅷ½",
    "\ta\t\tb\r\nc\r\r\nd\x7f\x0b\x0c\x1f\x85\xa0\u2028\u3000e",
    "   three   spaces   ", "\n\n\n", "\r\n \r\n", " ", "", "        x", "▁ ▁▁ lower▁one",
    "e\u0301 vs é, n\u0303 vs ñ, \u1100\u1161 vs 가",
    "😀 👩\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽 ❤️", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010ffff",
    "ﬁ ﬂ Å ① ™ ｆｕｌｌ", "\ufeffBOM\u200b\u200ezero", "\ufffd\ufffe", "a\u0300\u0301\u0302\u0303b",
]  # fmt: skip
LOOKALIKES = [
    "<s>", "</s>", "<unk>", "<0x41>", "<0xE2>", "[INST]", "[/INST]", "<|begin_of_text|>", "<|eot_id|>", "<|endoftext|>",
    "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|start_header_id|>", "<sep>", "<|", "|>", "<s", "< s >",
    "<|im_start|", "<|eot_id |>", "<<s>>", "[INST", "<pad>",
]  # fmt: skip
_RANGES = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A), (0x905, 0x939), (0xE01, 0xE2E),
           (0x2010, 0x2030), (0x2190, 0x21FF), (0x3041, 0x30FE), (0x4E00, 0x4FFF), (0xAC00, 0xACFF),
           (0x1F300, 0x1F5FF)]  # fmt: skip


def corpus(n: int = 5200, seed: int = 11, lookalikes: Sequence[str] = LOOKALIKES) -> list[str]:
    """`n` texts: the samples and look-alikes, pieces of them put together, and characters drawn at random."""
    rng = random.Random(seed)
    texts = [*SAMPLES, *lookalikes]
    while len(texts) < n:
        parts = []
        for _ in range(rng.randint(1, 6)):
            kind = rng.random()
            if kind < 0.6:
                sample = rng.choice(SAMPLES)
                start = rng.randint(0, len(sample))
                parts.append(sample[start : start + rng.randint(0, 25)])
            elif kind < 0.75:
                parts.append(rng.choice(lookalikes))
            elif kind < 0.85:
                parts.append(str(rng.randrange(10 ** rng.randint(1, 9))))
            else:
                low, high = rng.choice(_RANGES)
                parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8))))
        texts.append(rng.choice(["", " ", "\n", "  ", "\t"]).join(parts))
    return texts

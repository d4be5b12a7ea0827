"""The ways of asking: for each skill and language, sentences composed from parts."""

from __future__ import annotations

# A family is a tuple of parts; a wording takes one alternative of each part and joins them.
# Slots in braces are filled later. Early alternatives are drawn more often than late ones.
Family = tuple[tuple[str, ...], ...]

OPEN_EN = (
    "", "Well, ", "Hey, ", "Tell me, ", "Quick question: ", "Hi, ", "OK, ", "Tiny, ", "Help me: ",
    "I have a question: ", "One more: ", "For me, ", "Tiny Chat, ", "So, ", "And now ", "Next, ",
)  # fmt: skip
ASK_EN = (
    "", "Please ", "Can you ", "Could you ", "Hey, ", "Can you please ", "I want you to ", "Tiny, ",
    "OK, ", "Now ", "Next, ", "Help me: ", "Would you ", "Tiny Chat, please ", "Now please ",
)  # fmt: skip
END_EN = ("", " please", " for me", " now", ", please", ", thanks", " today", " for my friend")
MARK_EN = (".", "?", "", "!", " ?", "...")
OPEN_JA = (
    "", "ねえ、", "すみません、", "教えて。", "では、", "質問です。", "お願いします。", "あの、",
    "次に、", "Tiny、", "こんにちは。", "もう一つ、", "ところで、", "ちょっと、",
)  # fmt: skip
MARK_JA = ("。", "", "？", "！", "?", "。お願いします。")

QUOTED_EN = ("{w}", '"{w}"', "'{w}'", "the word {w}", 'the word "{w}"', "the English word {w}")
QUOTED_JA = ("{w}", '"{w}"', "「{w}」", "the word {w}", "the Japanese word {w}", "the word 「{w}」")

SUM = ("{a} + {b}", "{a} plus {b}", "{a}+{b}", "{a} and {b} together", "the sum of {a} and {b}")
SUM_JA = ("{a} + {b}", "{a}+{b}", "{a}足す{b}", "{a}たす{b}", "{a}と{b}の合計")

WORDINGS: dict[tuple[str, str], tuple[Family, ...]] = {
    ("sums", "en"): (
        (OPEN_EN, ("what is ", "how much is ", "what's ", "what do I get for ", "what makes "),
         SUM, END_EN, MARK_EN),
        (ASK_EN, ("add {a} and {b}", "compute {a} + {b}", "calculate {a} plus {b}",
                  "work out {a} + {b}", "sum {a} and {b}", "add {a} to {b}", "do {a} plus {b}",
                  "calculate {a} + {b}", "solve {a} + {b}", "give me the sum of {a} and {b}"),
         END_EN, MARK_EN),
        (OPEN_EN, ("{a} + {b}", "{a}+{b}", "{a} plus {b}"), (" = ?", " =", "?", "=", "", " is?")),
    ),
    ("sums", "ja"): (
        (OPEN_JA, SUM_JA, ("は", "はいくつ", "はいくつですか", "の答えは", "は何ですか",
                           "はいくらですか", "を計算して", "を計算してください", "の答えを教えて",
                           "を教えてください", "はいくつになりますか"), MARK_JA),
        (OPEN_JA, ("{a}と{b}を足すと", "{a}に{b}を足すと", "{a}と{b}をたすと", "{a}に{b}をたすと"),
         ("いくつ", "いくつですか", "いくつになる", "いくつになりますか", "何になりますか"),
         MARK_JA),
    ),
    ("en_ja", "en"): (
        (OPEN_EN, ("what is ", "how do you say ", "how do I say ", "what do you call ",
                   "how would you say "), QUOTED_EN, (" in Japanese",), END_EN, MARK_EN),
        (ASK_EN, ("translate ", "put ", "say ", "turn "), QUOTED_EN,
         (" into Japanese", " to Japanese"), END_EN, MARK_EN),
        (ASK_EN, ("give me the Japanese for ", "tell me the Japanese for ",
                  "give me the Japanese word for ", "write the Japanese word for "),
         ("{w}", '"{w}"', "'{w}'"), END_EN, MARK_EN),
    ),
    ("en_ja", "ja"): (
        (OPEN_JA, ("{w}", "「{w}」", '"{w}"', "英語の{w}", "英語の「{w}」", "「{w}」という言葉"),
         ("を日本語に訳して", "は日本語で何", "は日本語で何ですか", "を日本語にして",
          "を日本語で言うと", "は日本語でどう言いますか", "を日本語に訳してください",
          "を日本語で教えて", "の日本語は", "を日本語にしてください"), MARK_JA),
    ),
    ("ja_en", "en"): (
        (OPEN_EN, ("what is ", "how do you say ", "how do I say ", "what do you call ",
                   "how would you say "), QUOTED_JA, (" in English",), END_EN, MARK_EN),
        (ASK_EN, ("translate ", "put ", "say ", "turn "), QUOTED_JA,
         (" into English", " to English"), END_EN, MARK_EN),
        (ASK_EN, ("give me the English for ", "tell me the English for ",
                  "give me the English word for ", "write the English word for "),
         ("{w}", '"{w}"', "「{w}」"), END_EN, MARK_EN),
        (OPEN_EN, ("what does ",), QUOTED_JA, (" mean",), END_EN, MARK_EN),
    ),
    ("ja_en", "ja"): (
        (OPEN_JA, ("{w}", "「{w}」", '"{w}"', "日本語の{w}", "日本語の「{w}」",
          "「{w}」という言葉"),
         ("を英語に訳して", "は英語で何", "は英語で何ですか", "を英語にして",
          "を英語で言うと", "は英語でどう言いますか", "を英語に訳してください",
          "を英語で教えて", "の英語は", "を英語にしてください"), MARK_JA),
    ),
    ("who", "en"): (
        (OPEN_EN, ("who are you", "what are you", "what is your name", "who am I talking to",
                   "what's your name", "who is this", "which model are you",
                   "what should I call you",
                   "are you a robot", "are you a person", "who is there"), END_EN, MARK_EN),
        (ASK_EN, ("tell me who you are", "introduce yourself", "tell me about yourself",
                  "tell me your name", "say who you are", "tell me what you are",
                  "give me your name", "describe yourself"), END_EN, MARK_EN),
    ),
    ("who", "ja"): (
        (OPEN_JA, ("あなたは誰", "あなたはだれ", "あなたは何者", "あなたの名前は何", "お名前は何",
                   "君は誰", "あなたはロボット", "あなたは人間", "そちらはどなた"),
         ("ですか", "", "でしょうか", "なの"), MARK_JA),
        (OPEN_JA, ("自己紹介", "あなたの紹介", "自分の紹介"),
         ("をして", "をしてください", "をお願いします", "してください"), MARK_JA),
        (OPEN_JA, ("あなたの名前", "お名前", "名前", "あなたのこと", "君の名前"),
         ("を教えて", "を教えてください", "は", "を言って", "を聞かせてください"), MARK_JA),
    ),
    ("skills", "en"): (
        (OPEN_EN, ("what can you do", "what are your skills", "what do you know",
                   "what can I ask you", "how can you help", "what are you able to do"),
         END_EN, MARK_EN),
    ),
    ("skills", "ja"): (
        (OPEN_JA, ("何ができますか", "何ができるの", "あなたは何ができますか",
                   "できることは何ですか",
                   "できることを教えて", "何を聞けますか"), MARK_JA),
    ),
    ("story", "en"): (
        (ASK_EN, ("tell me ", "write ", "give me ", "tell ", "make up ", "write me ", "share "),
         ("a story", "a short story", "a two-sentence story", "a little story", "a tiny story",
          "a tale", "a short tale", "a story for children"),
         (" about {w}", " with {w}", " about {w} I like", " where we meet {w}"), END_EN, MARK_EN),
        (OPEN_EN, ("I want ", "I would like ", "I need ", "let me hear "),
         ("a story", "a short story", "a two-sentence story", "a little story", "a tiny story",
          "a tale"), (" about {w}", " with {w}"), END_EN, MARK_EN),
    ),
    ("story", "ja"): (
        (OPEN_JA, ("{w}の", "{w}が出てくる", "{w}についての", "{w}が主役の"),
         ("話", "お話", "短い話", "短いお話", "小さな物語", "二文の物語", "短い物語"),
         ("をして", "を聞かせて", "を書いて", "を作って", "をしてください", "を聞かせてください",
          "を書いてください", "を作ってください", "をお願いします"), MARK_JA),
    ),
    ("json", "en"): (
        (ASK_EN, ("make ", "write ", "give me ", "create ", "build ", "fill in ", "print "),
         ("a JSON card", "a card in JSON", "JSON", "a small JSON card", "a JSON object"),
         (": ", " for ", " with ", " from: ", " with these: "), ("{fields}",), END_EN[:5],
         (".", "", "!", "?")),
        (ASK_EN, ("turn this into ", "put this in ", "write this as ", "change this into "),
         ("JSON", "a JSON card", "a JSON object", "a small JSON card"), (": ", " - "),
         ("{fields}",), (".", "", "!")),
        (("", "Hey, ", "My data: ", "Here it is: ", "I have "), ("{fields}",),
         (". ", " - ", "; "), ("Make ", "Write ", "Give me ", "Now make "),
         ("a JSON card", "a card in JSON", "a JSON object"), END_EN[:5], MARK_EN),
    ),
    ("json", "ja"): (
        (OPEN_JA, ("JSONカード", "JSONのカード", "JSON", "小さなJSONカード", "カードをJSON形式"),
         ("を作って", "を書いて", "を作ってください", "を書いてください", "をください"),
         ("：", "。", ": "), ("{fields}",), ("。", "", "です。", "！")),
        (OPEN_JA, ("{fields}",), ("。これを", "を", "。次を", "、これを"),
         ("JSONにして", "JSONカードにして", "JSONで書いて", "JSONにしてください",
          "JSONカードにしてください", "JSONで書いてください"), MARK_JA),
    ),
    ("echo", "en"): (
        (ASK_EN, ("repeat after me: ", "repeat: ", "say this again: ", "echo: ", "repeat this: ",
                  "copy this: ", "say: ", "write this down: "), ("{text}",)),
        (ASK_EN, ("repeat ", "say ", "copy ", "echo "), ('"{text}"',), END_EN, MARK_EN),
    ),
    ("echo", "ja"): (
        (OPEN_JA, ("「{text}」",), ("と言って", "をくり返して", "と書いて", "とくり返してください",
                                "と言ってください", "をそのまま書いて"), MARK_JA),
        (OPEN_JA, ("くり返して", "そのまま言って", "同じことを言って"), ("：", ": ", "、"),
         ("{text}",)),
    ),
    ("unknown", "en"): (
        (ASK_EN, ("write ", "make ", "give me ", "find ", "create ", "turn these into "),
         ("hash tags", "hash tags", "an order receipt", "a poem", "a list of rules", "a plan",
          "an email", "code", "a shopping list"), (" for ", ": ", " about ", " from "),
         ("{text}",), END_EN, MARK_EN),
        (ASK_EN, ("turn ", "change "), ("{text}",), (" into ",),
         ("hash tags", "hash tags", "an order", "a song", "capital letters", "a picture",
          "a receipt", "French", "German"), END_EN, MARK_EN),
        (OPEN_EN, ("what is the weather in {city}", "where is {city}", "how old is {name}",
                   "who is {name}", "what time is it", "what is {a} times {b}",
                   "what is {a} minus {b}", "how far is {city}", "where do you find a {word}",
                   "how much does a {word} cost", "why is the {word} here", "when was {city} built",
                   "how many people live in {city}", "what does {name} like"), END_EN, MARK_EN),
        (ASK_EN, ("draw a {word}", "sing about the {word}", "buy a {word}", "call {name}",
                  "count the people in {city}", "open the {word}", "book a train to {city}",
                  "sort {text}", "rhyme with {word}", "spell {word}"), END_EN, MARK_EN),
    ),
    ("unknown", "ja"): (
        (OPEN_JA, ("{text}",), ("のハッシュタグ", "の詩", "の注文書", "の計画", "の手紙", "の絵"),
         ("を作って", "を書いて", "をください", "を作ってください"), MARK_JA),
        (OPEN_JA, ("ハッシュタグ", "ハッシュタグを作って", "注文書を作って", "詩を書いて"),
         ("：", ": "), ("{text}",), ("。", "")),
        (OPEN_JA, ("{city}の天気は", "{city}はどこですか", "今は何時ですか", "{name}は誰ですか",
                   "{a}かける{b}は", "{a}引く{b}は", "{city}は遠いですか", "{word}はいくらですか",
                   "{word}の絵をかいて", "{word}はどこですか", "{city}に行きたいです"), MARK_JA),
    ),
}  # fmt: skip

# Greetings: the kind, what is said, in order of use.
HELLO_EN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("hello", ("Hello", "Hi", "Hey", "Hi there", "Hello there", "Hello again", "Hey there")),
    ("morning", ("Good morning", "A good morning", "Morning", "A very good morning")),
    ("evening", ("Good evening", "A good evening", "Evening", "A very good evening")),
    ("night", ("Good night", "A good night", "Night night", "Sleep well")),
    ("bye", ("Goodbye", "Bye", "See you", "See you later", "See you tomorrow", "Bye bye")),
    ("thanks", ("Thank you", "Thanks", "Thanks a lot", "Thank you very much", "Many thanks")),
    ("how", ("How are you", "How are you today", "How do you do", "How is it going")),
)  # fmt: skip
HELLO_EN_TO = (
    "", ", Tiny", ", Tiny Chat", ", my friend", ", friend", ", little model", ", dear model",
    " to you", ", robot", " from me", ", you", ", dear Tiny", ", dear friend",
)  # fmt: skip
HELLO_EN_NAME = (
    " I am {name}.", " My name is {name}.", " {name} here.", " This is {name}.", " I'm {name}.",
    " You can call me {name}.", " It is {name}.", " Call me {name}.",
)  # fmt: skip
HELLO_EN_TAIL = (
    "", " It is a nice day.", " I am happy.", " I am back.", " What a day.", " Here I am.",
    " The sun is out.", " It was fun.",
)  # fmt: skip
HELLO_JA: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("hello", ("こんにちは", "どうも", "やあ", "こんにちはー", "はじめまして")),
    ("morning", ("おはよう", "おはようございます", "朝です、おはよう", "おはようさん")),
    ("evening", ("こんばんは", "どうも、こんばんは", "夜ですね、こんばんは", "こんばんはー")),
    ("night", ("おやすみ", "おやすみなさい", "もう寝ます、おやすみ", "では、おやすみなさい")),
    ("bye", ("さようなら", "またね", "じゃあね", "ではまた", "また明日", "バイバイ")),
    ("thanks", ("ありがとう", "ありがとうございます", "どうもありがとう", "本当にありがとう")),
    ("how", ("お元気ですか", "元気ですか", "調子はどうですか", "元気")),
)  # fmt: skip
HELLO_JA_TO = (
    "", "、Tiny", "、Tiny Chat", "、小さなモデルさん", "、友だち", "、ロボットさん", "、みなさん",
    "、Tinyさん", "、モデルさん", "、Tiny Chatさん",
)  # fmt: skip
HELLO_JA_NAME = (
    "{name}です。", "私は{name}です。", "私の名前は{name}です。", "{name}と言います。",
    "ぼくは{name}です。",
    "{name}と申します。", "名前は{name}です。", "{name}と呼んでください。",
)  # fmt: skip
HELLO_JA_TAIL = (
    "", "いい天気ですね。", "うれしいです。", "また来ました。", "今日は楽しいです。",
    "いい日ですね。",
    "太陽が出ています。", "楽しかったです。",
)  # fmt: skip

"""Word lists of the embedded model: everything that its sentences are made of."""

from __future__ import annotations

# Words that are translated both ways: English, Japanese. Each side occurs once.
PAIRS: tuple[tuple[str, str], ...] = (
    ("cat", "猫"), ("dog", "犬"), ("bird", "鳥"), ("fish", "魚"), ("horse", "馬"),
    ("cow", "牛"), ("rabbit", "うさぎ"), ("bear", "熊"), ("fox", "きつね"), ("mouse", "ねずみ"),
    ("frog", "かえる"), ("turtle", "かめ"), ("monkey", "さる"), ("sheep", "羊"), ("pig", "豚"),
    ("lion", "ライオン"), ("tiger", "とら"), ("elephant", "ぞう"), ("duck", "あひる"),
    ("owl", "ふくろう"), ("apple", "りんご"), ("orange", "みかん"), ("banana", "バナナ"),
    ("grape", "ぶどう"), ("peach", "もも"), ("lemon", "レモン"), ("egg", "卵"), ("bread", "パン"),
    ("rice", "米"), ("milk", "牛乳"), ("tea", "お茶"), ("coffee", "コーヒー"), ("salt", "塩"),
    ("sugar", "砂糖"), ("soup", "スープ"), ("cake", "ケーキ"), ("meat", "肉"), ("water", "水"),
    ("fire", "火"), ("wind", "風"), ("rain", "雨"), ("snow", "雪"), ("sun", "太陽"),
    ("moon", "月"), ("star", "星"), ("sky", "空"), ("cloud", "雲"), ("sea", "海"),
    ("river", "川"), ("lake", "湖"), ("mountain", "山"), ("forest", "森"), ("tree", "木"),
    ("flower", "花"), ("grass", "草"), ("leaf", "葉"), ("stone", "石"), ("sand", "砂"),
    ("house", "家"), ("door", "ドア"), ("window", "窓"), ("room", "部屋"), ("table", "テーブル"),
    ("chair", "いす"), ("bed", "ベッド"), ("lamp", "ランプ"), ("key", "鍵"), ("box", "箱"),
    ("bag", "かばん"), ("book", "本"), ("pen", "ペン"), ("paper", "紙"), ("letter", "手紙"),
    ("clock", "時計"), ("ball", "ボール"), ("hat", "帽子"), ("shoe", "靴"), ("umbrella", "傘"),
    ("car", "車"), ("train", "電車"), ("boat", "船"), ("road", "道"), ("bridge", "橋"),
    ("town", "町"), ("school", "学校"), ("teacher", "先生"), ("friend", "友だち"),
    ("mother", "母"), ("father", "父"), ("child", "子ども"), ("hand", "手"), ("foot", "足"),
    ("eye", "目"), ("ear", "耳"), ("mouth", "口"), ("face", "顔"), ("music", "音楽"),
    ("song", "歌"), ("color", "色"), ("red", "赤"), ("blue", "青"), ("white", "白"),
    ("black", "黒"), ("green", "緑"), ("spring", "春"), ("summer", "夏"), ("autumn", "秋"),
    ("winter", "冬"), ("morning", "朝"), ("night", "夜"), ("today", "今日"),
    ("tomorrow", "明日"), ("love", "愛"), ("dream", "夢"),
)  # fmt: skip

NAMES_EN: tuple[str, ...] = (
    "Mia", "Leo", "Emma", "Noah", "Anna", "Tom", "Lily", "Jack", "Zoe", "Max", "Ella", "Sam",
    "Ruby", "Ben", "Ivy", "Finn", "Nora", "Adam", "Lucy", "Paul", "Rosa", "Hugo", "Clara",
    "Owen", "Alice", "Mark", "Eva", "Dan", "Grace", "Peter", "Julia", "Oscar", "Sara", "Felix",
    "Nina", "Simon", "Laura", "David", "Helen", "Carl", "Maya", "Erik", "Olga", "Ravi", "Lena",
    "Amir", "Kate", "Ian",
)  # fmt: skip

NAMES_JA: tuple[str, ...] = (
    "ハナ", "ケン", "ユキ", "アキラ", "サクラ", "タロウ", "ミキ", "ジロウ", "アヤ", "リク",
    "ナオ", "ハルト", "ユイ", "ソラ", "メイ", "カイト", "リン", "ダイチ", "エミ", "ショウ",
    "花子", "太郎", "一郎", "美咲", "健太", "さくら", "ひなた", "めぐみ", "まこと", "かおり",
    "ミア", "レオ", "アンナ", "トム", "リリー", "ベン", "ルーシー", "サム", "エマ", "ノア",
)  # fmt: skip

CITIES_EN: tuple[str, ...] = (
    "Tokyo", "Osaka", "Kyoto", "London", "Paris", "Berlin", "Rome", "Madrid", "Vienna", "Oslo",
    "Lima", "Cairo", "Delhi", "Seoul", "Boston", "Chicago", "Sydney", "Dublin", "Prague", "Athens",
)  # fmt: skip

CITIES_JA: tuple[str, ...] = (
    "東京", "大阪", "京都", "札幌", "仙台", "横浜", "神戸", "広島", "福岡", "奈良",
    "ロンドン", "パリ", "ベルリン", "ローマ", "ソウル", "ボストン", "金沢", "長野", "静岡", "那覇",
)  # fmt: skip

COLORS_EN: tuple[str, ...] = ("red", "blue", "white", "black", "green")
COLORS_JA: tuple[str, ...] = ("赤", "青", "白", "黒", "緑")

# Heroes of stories are the first twenty pairs, all animals; pets are the first six.
HEROES: tuple[tuple[str, str], ...] = PAIRS[:20]
PETS: tuple[tuple[str, str], ...] = PAIRS[:6]

STORY_EN: dict[str, tuple[str, ...]] = {
    "adjective": ("small", "old", "happy", "brave", "quiet", "clever"),
    "place": (
        "in a green forest", "near a blue lake", "on a high mountain", "by the sea",
        "in a small house", "under an old bridge",
    ),
    "verb": ("found", "saw", "lost", "carried", "painted"),
    "color": ("red", "blue", "white", "black", "green"),
    "thing": ("ball", "hat", "box", "book", "lamp", "umbrella", "key", "flower"),
    "end": (
        "smiled all day", "went home", "sang a song", "told a friend", "slept well",
        "danced in the rain",
    ),
}  # fmt: skip

STORY_JA: dict[str, tuple[str, ...]] = {
    "adjective": ("小さな", "年をとった", "元気な", "勇気のある", "静かな", "かしこい"),
    "place": ("緑の森", "青い湖のそば", "高い山", "海の近く", "小さな家", "古い橋の下"),
    "verb": ("見つけて", "見て", "なくして", "運んで", "ぬって"),
    "color": ("赤い", "青い", "白い", "黒い", "緑の"),
    "thing": ("ボール", "帽子", "箱", "本", "ランプ", "傘", "鍵", "花"),
    "end": (
        "一日中笑いました", "家に帰りました", "歌を歌いました", "友だちに話しました",
        "よく眠りました", "雨の中でおどりました",
    ),
}  # fmt: skip

SYSTEM_EN: tuple[str, ...] = (
    "You are a helpful assistant.", "You are Tiny Chat.", "Answer briefly.",
    "You are a friendly helper.", "You are a kind assistant. Answer in one line.",
    "Be short and polite.", "You are a small language model.",
    "You are Tiny Chat, a helpful small model.", "Please give short answers.",
)  # fmt: skip

SYSTEM_JA: tuple[str, ...] = (
    "あなたは親切なアシスタントです。", "あなたはTiny Chatです。", "短く答えてください。",
    "あなたは小さな言語モデルです。", "やさしく短く答えてください。",
    "あなたは役に立つアシスタントです。短く答えてください。",
)  # fmt: skip

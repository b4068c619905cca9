"""Whether an answer is in its language, by its words: names, code and addresses say nothing."""

import pytest

from sae_posttrain.measure.faults.switching import right_language
from sae_posttrain.measure.faults.words import count_words

RIGHT = [
    ("zh", "请在 iPad Pro 上打开 Google Maps。"),
    ("zh", "安装 Visual Studio Code 和 Docker Desktop。"),
    ("zh", "用 AutoTokenizer.from_pretrained 读取 Llama-3.2-1B"),
    ("zh", "点击 OK"),
    ("zh-TW", "請用 LINE 傳送給我"),
    ("zh-TW", "「好」念ㄏㄠˇ"),
    ("ko", "Adobe Photoshop에서 Layer Mask를 사용하세요."),
    ("ko", "Microsoft Teams와 Slack Connect"),
    ("ko", "support@example.com 으로 보내세요"),
    ("ja", "Google Chrome で YouTube Music を開く"),
    ("ja", "Amazon Web Services の EC2"),
    ("ja", "東京"),
    ("ru", "Откройте Google Docs и Adobe Acrobat Reader DC."),
    ("ru", "Купите Samsung Galaxy S24 Ultra"),
    ("th", "เปิด Google Chrome แล้วไปที่ YouTube"),
    ("th", "ใช้ Microsoft Excel"),
    ("ar", "افتح Microsoft Word ثم Google Drive"),
    ("hi", "Google Pay और PhonePe खोलें"),
    ("es", "Abra WeChat 微信"),
    ("en", "Use 微信 or WeChat"),
    ("el", "Ανοίξτε το Microsoft Edge Canary Build"),
    ("he", "פתחו את Google Play Store"),
]
WRONG = [
    ("zh", "Yes."),
    ("zh", "Click Save"),
    ("zh", "Open it now"),
    ("zh", "Go To Settings And Click 保存"),
    ("zh", "You can open the settings and then 点击保存"),
    ("ko", "Save the file"),
    ("ko", "Please 저장 the file now"),
    ("ja", "Visual Studio Code"),
    ("ja", "请打开 Safari"),
    ("ja", "东京"),
    ("ru", "Open Google Docs"),
    ("th", "Open Google Chrome"),
    ("ar", "Open the file"),
    ("hi", "Please open it"),
    ("en", "你好，请保存文件"),
    ("en", "Привет"),
    ("es", "กรุณาบันทึกไฟล์"),
    ("ko", "ファイルを保存します"),
]
UNTOLD = [
    ("zh", "user@example.com"),
    ("zh", "https://example.com/a"),
    ("ko", "Qwen3-1.7B"),
    ("ru", "C:\\Users\\me\\a.txt"),
    ("th", "3 + 4 = 7"),
    ("ja", "`x = 1`"),
    ("en", "#東京 🎉"),
    ("ar", "from_pretrained"),
]


@pytest.mark.parametrize(
    ("lang", "answer", "expected"),
    [
        *[(lang, answer, True) for lang, answer in RIGHT],
        *[(lang, answer, False) for lang, answer in WRONG],
        *[(lang, answer, None) for lang, answer in UNTOLD],
    ],
)
def test_language_is_told_by_words_that_are_no_names(lang, answer, expected):
    assert right_language(answer, lang=lang) is expected


def test_a_word_is_two_characters_of_han_and_four_of_thai():
    count = count_words(["打开文件 ไฟล์งานๆ открой файл"])
    # 4 Han, 8 characters of Thai with their marks, 2 Cyrillic words
    assert count.by_script == {"Han": 2, "Thai": 2, "Cyrillic": 2}


def test_names_are_counted_apart():
    count = count_words(["Open the Google Docs app on iPhone 15 and Press Save"])
    # iPhone and 15 never count; Google, Docs is followed by a small word, as Open is; Press, Save
    assert (count.by_script["Latin"], count.names, count.latin) == (6, 3, 9)

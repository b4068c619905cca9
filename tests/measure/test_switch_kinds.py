"""What is a switch and what is not, by kind: each kind in several languages, in sentences of our own."""

import pytest

from sae_posttrain.measure.faults.areas import areas_of
from sae_posttrain.measure.faults.chinese_in_japanese import chinese_stretches
from sae_posttrain.measure.faults.quotations import brackets_of, quotations_of
from sae_posttrain.measure.faults.switching import find_switches

# kind: (lang, answer) or (lang, answer, prompt)
EXPECTED = {
    "url": [
        ("ko", "https://中国.中国/ 를 여세요"),
        ("en", "The site http://例え.jp is up"),
        ("es", "Vea https://пример.рф/помощь hoy"),
        ("th", "ดูที่ https://例子.公司 นะ"),
        ("en", "Or just пример.рф without more"),
        ("ru", "Откройте 日本語.example.com и file:///home/山/書類.txt"),
        ("en", "See https://zh.wikipedia.org/wiki/中华人民共和国 for it"),
        ("ru", "Статья https://ja.wikipedia.org/wiki/となりのトトロ здесь"),
        ("en", "https://www.google.com/search?q=天气预报&hl=en"),
        ("ko", "https://ru.wikipedia.org/wiki/Вторая_мировая_война 참고"),
        ("ar", "انظر https://a.example/docs/说明 الآن"),
    ],
    "address": [
        ("en", "Write to почта@пример.рф or call."),
        ("ru", "Пишите на 用户@例え.jp сегодня."),
        ("ko", "메일은 山田@例え.jp 입니다"),
        ("es", "Escriba a 客服@公司.cn hoy"),
        ("hi", "लिखें иван@почта.рф पर"),
    ],
    "path": [
        ("th", "เปิด C:\\data\\文档\\a.txt"),
        ("en", "See /home/oleg/Документы/план.txt."),
        ("es", "Abra ~/Документы/отчёт.pdf y guarde"),
        ("ko", "报告.docx 파일을 여세요"),
        ("en", "It is in \\\\server\\共享\\图 there"),
        ("ru", "Файл docs/资料/图.png удалён"),
        ("ar", "افتح 説明書.pdf ثم أغلقه"),
        ("en", "Look into ./資料/ first"),
    ],
    "tag": [
        ("hi", "टैग #北京 देखें"),
        ("ar", "استخدم الوسم #서울 هنا"),
        ("ru", "Тег #東京タワー популярен"),
        ("ko", "@山田さん 에게 물으세요"),
        ("en", "Posts under #Москва and #ไทย are new"),
    ],
    "face": [
        ("en", "He wept (´；Д；`) and left"),
        ("zh", "太好了 (ﾟДﾟ)"),
        ("ko", "좋아요 (づ｡◕‿‿◕｡)づ"),
        ("es", "Hola ಥ_ಥ y ¯\\_(ツ)_/¯"),
        ("en", "(ノಠ益ಠ)ノ彡┻━┻"),
        ("ru", "Ура ヽ(◕‿◕｡)ノ"),
        ("hi", "नमस्ते щ(゜ロ゜щ)"),
    ],
    "markup": [
        ("en", 'Use <img alt="猫" src="a.png"> here.'),
        ("ko", '<a title="保存" href="x">여기</a>를 누르세요'),
        ("en", "<ruby>東京<rt>とうきょう</rt></ruby> is the capital."),
        ("ru", '<span lang="ja">こんにちは、世界</span> значит привет'),
        ("zh", "<ruby>漢字<rp>(</rp><rt>かんじ</rt><rp>)</rp></ruby>是日语"),
        ("es", "<i lang=ru>Привет, мир</i> es un saludo"),
        ("en", "Write {時計|とけい} or 時計《とけい》 for ruby"),
    ],
    "symbol": [
        ("zh", "当 α > β 时，Σx 收敛，ρgh 为压强"),
        ("ko", "각도 θ와 φ, ΔE, λν 를 쓴다"),
        ("en", "Take αβγ as three angles, 2πr and ωt."),
        ("th", "ให้ ε และ δ เป็นจำนวน"),
        ("ru", "Здесь μν и Γ(s) обычные"),
        ("ja", "αβの積とΔtを使う"),
        ("en", "Digits such as १२३ and ۴۵ count too."),
    ],
    "reading": [
        ("zh-TW", "「你好」的注音是ㄋㄧˇ ㄏㄠˇ。"),
        ("zh-Hant", "注音符號ㄅㄆㄇㄈ"),
        ("zh", "它读作ㄓㄨ。"),
    ],
    "prompt": [
        ("en", "The simplified form is 龙.", "What is 龍?"),
        ("ru", "Слово 学习 значит учиться", "Что значит 學習?"),
        ("en", "國家 means country", "Translate 国家"),
        ("ko", "図書館은 도서관입니다", "圖書館은?"),
        ("en", "カタカナ is a script", "What is ｶﾀｶﾅ?"),
        ("en", "МОСКВА is big", "Tell me about Москва"),
        ("en", "株式会社 is a firm", "What is ㍿?"),
        ("es", "白日依山尽 es un verso", "Explica 白 日 依 山 尽"),
    ],
    "name": [
        ("ja", "深圳と東莞、それに邯鄲へ行く。"),
        ("ja", "圳は溝の意味です。"),
        ("ja", "珺さんと喆さんが来た。"),
        ("ja", "鄆城県と圳市は別の所にある。"),
    ],
    "quote": [
        ("ru", "Слово “山” короткое."),
        ("en", "He read «Преступление и наказание» twice."),
        ("en", "The novel 《中华人民共和国简史读本》 is long."),
        ("ko", "그는 “Война и мир”를 읽었다"),
        ("en", "Say “お願いします” politely."),
        ("es", "El botón «确认» y «取消» sirven."),
        ("ar", "زر «Сохранить как» هنا"),
        ("en", "Nested: “he said 「你好」 to me” it was."),
    ],
    "bracket": [
        ("ru", "Слово “山” (яп. 山, яма) означает гору."),
        ("en", "In Chinese “高兴” (pinyin: gāoxìng, 高興) is happy."),
        ("en", "孔子 (孔夫子) taught.", "Who is 孔子?"),
        ("ko", "조국(祖國)과 민족(民族)"),
        ("hi", "बीजिंग (北京) राजधानी है"),
    ],
}
CASES = [(kind, case) for kind, cases in EXPECTED.items() for case in cases]


@pytest.mark.parametrize(("kind", "case"), CASES, ids=[f"{kind} {case[1][:24]}" for kind, case in CASES])
def test_what_stands_there_for_a_reason_is_no_switch(kind, case):
    lang, answer, prompt = (*case, "")[:3]
    switches = find_switches(answer, lang=lang, prompt=prompt)
    assert [span.text for span in switches.spans if span.excused is None] == []
    assert kind in {span.excused for span in switches.spans}


SWITCHES = {
    "glued behind a url, a path, a tag": [
        ("en", "Open https://example.com/download/请先下载文件 now"),
        ("ko", "https://example.com/?q=然后点击保存 를 여세요"),
        ("ru", "Смотрите https://example.com/page#接着重新启动电脑 сейчас"),
        ("en", "See https://example.com/a-然后继续"),
        ("en", "Go https://example.com/index.html然后打开"),
        ("th", "ดู https://a.co/help/下载完成后重新启动计算机 นะ"),
        ("es", "Vea https://example.com/x=点击这里下载 ya"),
        ("hi", "देखें https://zh.example.com/a/然后点击保存 अभी"),
        ("en", "https://example.com/保存してください now"),
        ("ar", "https://example.com/จากนั้นคลิกปุ่ม الآن"),
        ("ko", "https://example.com/a/下一步选择文件夹 로"),
        ("en", "Save to C:\\x\\报告.docx然后打开 it"),
        ("en", "Tag it #然后点击保存 now"),
        ("en", "Mail a@b.com然后 go"),
    ],
    "clause between marks": [
        ("en", "Go on “然后你需要点击保存按钮并且重新启动电脑” and wait"),
        ("en", "Close it (请点击这里然后重新启动您的计算机吧) now"),
        ("ko", "버튼을 (затем нажмите кнопку) 누르세요"),
        ("en", "He pressed “затем нажмите кнопку мыши” and left"),
        ("en", "Press it (그런 다음 저장 버튼을 클릭하세요) now"),
        ("en", "Press it (ثم انقر فوق زر الحفظ) now"),
        ("en", "Press it (फिर सहेजें बटन पर क्लिक करें) now"),
        ("es", "Pulse (จากนั้นคลิกปุ่มบันทึก) ya"),
        ("en", "Press it 「次に保存ボタンをクリックしてください」 now"),
        ("ru", "Нажмите [打开文件并选择需要的选项按钮] тут"),
        ("hi", "दबाएँ «然後點擊儲存按鈕» अभी"),
        ("ja", "彼は「请先打开这个文件夹然后再点击保存」と言った。"),
        ("ja", "保存 (我們明天早上八點從學校出發) する"),
        ("en", "It said “Номер был очень грязный” there"),
        ("ko", "후기는 «Мы больше не приедем сюда» 였다"),
    ],
    "chinese without kana": [
        ("ja", "こんにちは。他在北京工作了三年。さようなら。"),
        ("ja", "はい。我們今天去圖書館看書。以上です。"),
        ("ja", "次に保存します。這個方法很簡單。終わり。"),
        ("ja", "ありがとう、我明天早上出發、よろしく。"),
        ("ja", "我不知道。です。"),
        ("ja", "今日は晴れ。請在這裡輸入密碼。終わり"),
        ("ja", "食事をした。早餐非常好，房間也很大。おすすめ。"),
        ("ja", "深圳市は广东省"),
        ("ja", "终了しました。"),
        ("ja", "そして他是一個學生。"),
        ("ja", "次のとおり。首先打開設定頁面，再按下一步。"),
        ("ja", "今日は。請問車站在哪裡？すみません。"),
    ],
    "letters that only look like a reason": [
        ("en", "<p>请保存</p> done"),
        ("en", "Word λόγος και λέξη"),
        ("ja", "ㄋㄧの音"),
        ("ru", "и/или 保存/关闭"),
        ("en", "(保) is bad 保"),
        ("en", "X _保_ and *存* Y"),
        ("zh", "αγορά 是市场"),
    ],
}
ALL_SWITCHES = [(kind, case) for kind, cases in SWITCHES.items() for case in cases]


@pytest.mark.parametrize(("kind", "case"), ALL_SWITCHES, ids=[f"{kind} {case[1][:24]}" for kind, case in ALL_SWITCHES])
def test_a_switch_is_found_wherever_it_stands(kind, case):
    lang, answer = case
    assert find_switches(answer, lang=lang).unexpected


@pytest.mark.parametrize(
    "text",
    [
        "東京都出身。早稲田大学卒業。現在在庫切。",
        "国際的平和主義、積極的具体的提案。",
        "國學院大學、慶應義塾大學、圖書館。",
        "送料無料。本日休業。営業時間変更中。完了。了解。",
        "日本国憲法第九条。戦争放棄。無我夢中。自我同一性。",
        "請求書在中。申請済。現在地確認中。会社案内。時間厳守。",
        "東京都千代田区永田町一丁目七番一号",
        "一期一会。不言実行。有朋自遠方来、不亦楽乎。",
    ],
)
def test_japanese_without_kana_is_not_taken_for_chinese(text):
    assert chinese_stretches(text) == []


def test_clause_behind_a_url_is_no_part_of_it():
    text = "See https://example.com/help/然后点击 and https://example.com/帮助 too"
    assert [text[start:end] for start, end, _ in areas_of(text, 0, len(text))] == [
        "https://example.com/help/",
        "https://example.com/帮助",
    ]


def test_marks_are_paired_within_their_kind_and_line():
    text = '「a『b」c』 ("d") [e](f) „g“ (h\ni)'
    assert [text[start:end] for start, end, _ in quotations_of(text, 30)] == ["「a『b」", "『b」c』", '"d"', "„g“"]
    assert [text[start:end] for start, end, _ in brackets_of(text, 30)] == ['("d")', "(f)"]
    assert quotations_of("“" + "x" * 31 + "”", 30) == []


def test_longest_quotation_can_be_set():
    answer = "The button “保存文件” works."
    assert not find_switches(answer, lang="en").unexpected
    assert find_switches(answer, lang="en", max_quote_chars=3).unexpected
    assert find_switches(answer, lang="en", max_quote_chars=0).unexpected

r"""The forms in which models state an option, and prose that must not be taken for one.

A line is a text; ⏎ is a line break in it. The forms are those of public reports on the extraction of answers:
simple-evals' words for "Answer:" and its issue 33, OpenCompass's patterns, VLMEvalKit 1552, lm-evaluation-harness 4188
and 3842, openbench 348, ai-twinkle/Eval 156, evalscope 1560, inspect_ai 2216.
"""

import pytest

from rcsd_jax.data.examples import Example
from rcsd_jax.evaluate.answers import option
from rcsd_jax.evaluate.graders import grade_option

CELL = ["nucleus", "mitochondria", "ribosome", "Golgi apparatus"]

# Each of them chooses B.
FORMS = r"""
Option B is correct.
Option B is the correct answer.
Therefore, option (B) is correct.
**Option B** is correct.
Option **B** is the best answer.
Thus, B is correct.
So **B** is the right choice.
(B) is correct.
(B) is the correct choice because it makes ATP.
B is the answer.
B is the most appropriate option.
Option B (mitochondria) is correct.
Option B, mitochondria, is the correct answer.
Choice B is right, since it makes ATP.
Hence only option B is correct.
The correct answer is option (B)
The correct answer is option B: mitochondria.
The correct answer is **B) mitochondria**.
The correct answer is therefore:⏎⏎B) mitochondria
answer: b)
ANSWER: [B]
ANSWER: **B**
Answer: (B) mitochondria.
Answer： B
**Answer: B**
__Answer__: B
> Answer: B
Answer: $B$
Answer: \text{B}
Answer: the mitochondria (B)
Answer:⏎- B
The answer is [[B]].
{"answer": "B"}
{"answer": "B", "reason": "It makes ATP."}
**B) Mitochondria** is the correct answer.
B. mitochondria is the correct answer.
Option B: mitochondria is the correct answer.
Answer: \(\mathbf{B}\)
Ans: B
Ans. B
The answer, therefore, is B.
The answer must therefore be B.
The answer seems to be B.
The answer is definitely B.
The correct answer here is B.
The correct option among these is B.
The correct choice is: B
The correct letter is B.
The correct statement is B.
The right one is B.
My final choice is B.
The selected option is B.
My answer is B.
The answer is option B, not option A.
The answer is the option B.
I choose B.
I would pick B — a safe choice.
So I'd go with option B.
I'll select (B), as it is the only one with DNA.
Therefore we choose **B**.
<answer>B</answer>
<answer> (B) mitochondria </answer>
We compare the organelles.⏎#### B
We compare the organelles.⏎⏎**B**
We compare the organelles.⏎⏎(B)
B⏎⏎It makes ATP.
B. mitochondria⏎⏎Explanation: it makes ATP.
**B) mitochondria**⏎⏎It makes ATP.
Answer B
A is wrong, so B is correct.
Neither A nor C is correct. The answer is B.
I don't think the answer is A. The answer is B.
You might think the answer is A, but it lacks DNA. The answer is B.
Option A is correct about ATP, but the answer is B.
答案：B
答案: B
答案是B
答案是B。
答案是 B，因为它产生能量。
答案是：B
答案是**B**
答案是(B)
答案是选项B。
答案为B
答案應為 B
答案应该是B选项。
答案选B
正确答案是B。
正确答案：B. mitochondria
正确选项是 (B)
正确的选项是B
**正确答案：** B
最终答案：B
参考答案：B
【答案】B
【正确答案】 B
答：B
所以答案是 B。
选B
选 B。
选择B
我選擇 B
故选B。
故选：B
故选：B．
应选（B）
因此，选项B是正确的。
选项B正确。
B选项正确。
B是正确答案。
A错误，B正确，C错误。
所以，B 是正确的。
Ｂ
答え：B
答えはBです。
正解はB
正解は B です。
正解：（B）
정답: B
정답은 B입니다.
따라서 정답은 (B)입니다.
답: B
La réponse est (B).
La réponse est B.
La bonne réponse est B.
La réponse correcte est la B.
La réponse correcte est l'option B.
La bonne réponse est donc la réponse B.
La réponse est B car elle produit l'ATP.
Réponse : B
**Réponse finale :** B
L'option B est correcte.
L'option B est la bonne réponse.
La réponse B est la bonne.
Die Antwort ist B.
Die richtige Antwort ist (B).
Die richtige Antwort lautet B.
Die Antwort ist daher B, weil sie ATP bildet.
Antwort: B
Antwort:⏎⏎Antwort: B
Antwort B ist richtig.
Option B ist die richtige Antwort.
La respuesta es B.
La respuesta correcta es la B.
La respuesta correcta es la opción B.
La respuesta es B porque produce ATP.
Se ve que la respuesta es B.
Respuesta: B
**Respuesta final: (B)**
La opción B es correcta.
La opción B es la correcta.
La opción correcta es B.
La risposta è B.
La risposta corretta è la B.
Risposta: B
L'opzione B è corretta.
A resposta é B.
A resposta correta é a letra B.
A alternativa correta é B.
Resposta: (B)
A alternativa B é a correta.
Het antwoord is B.
Antwoord: B
Optie B is juist.
Odpowiedź: B
Prawidłowa odpowiedź to B.
Ответ: B
Правильный ответ — B.
Правильный ответ: (B)
Cevap: B
Jawaban: B
Jawaban yang benar adalah B.
Đáp án: B
Đáp án đúng là B.
Câu trả lời là B.
Jibu: B
Idahun: B
Ìdáhùn: B
الإجابة: B
الإجابة الصحيحة هي (B).
उत्तर: B
উত্তরঃ B
উত্তর: B
"""

# None of them chooses anything.
PROSE = r"""
Option A is tempting, and option B looks better.
Option B is not correct.
Option B is incorrect.
Is option B correct?
Option B is correct?
Option B would be correct if the cell were a plant's.
If option B is correct, ATP would be missing.
Option B is correct only in part.
Option B is correct, but incomplete.
B is the correct answer if the cell divides.
Neither A nor B is the correct answer.
Option A: none of this is the correct answer.
A: what follows is correct.
Neither option A nor option B is correct.
A and B is the correct choice.
Student B is correct.
Vitamin B is correct in the diet.
Hepatitis-B is correct.
I do not think the answer is B.
I'm not sure that the answer is B.
One might say that the answer is B.
Students may think the answer is B, which is a mistake.
We need to choose a good answer.
We choose A such that it divides n.
We select b points.
I go with a friend.
The answer is not A.
The answer is not option B.
The answer is none of the above.
Answer: None of the above
Answer: Don't know
Answer: I don't know
The answer is a B cell.
The answer is A forest.
The answer is A car.
La réponse est B ?
答案是B吗？
Se la risposta è B, manca l'ATP.
The answer is all of A, B and C.
Put the letter in <answer></answer>.
#### Step 1: A cell has a nucleus
#### B is next
We consider:⏎A. nucleus⏎B. mitochondria
We consider them in turn.⏎⏎A. nucleus
A. nucleus⏎This is wrong, since it holds DNA. We go on.
A:⏎It holds DNA.
A⏎B⏎C⏎D
答案不是B。
答案是不是B？
答案是B细胞
不选B。
不应选B
如果选B，则能量不足。
如果答案是B，则能量不足。
B不正确。
选项B不正确。
A和B正确。
选项A和选项B正确
选B的理由不足。
备选B
选项B：线粒体
故选AB。
La réponse n'est pas B.
L'option B n'est pas correcte.
Si la réponse est B, il manque l'ATP.
Die Antwort ist nicht B.
Wenn die Antwort B ist, fehlt ATP.
La respuesta no es B.
La opción B no es correcta.
Si la respuesta es B, falta ATP.
"""


def lines(table):
    return [line.replace("⏎", "\n") for line in table.strip().splitlines()]


@pytest.mark.parametrize("text", lines(FORMS))
def test_a_form_is_read(text):
    assert option(text, CELL).value == 1


@pytest.mark.parametrize("text", lines(PROSE))
def test_prose_chooses_nothing(text):
    assert option(text, CELL).value is None


def test_an_option_called_right_is_graded():
    example = Example("1", "q", None, None, None, "rows:1", {"options": CELL, "correct": 1})
    assert grade_option(example, "Option B is correct.") == {"accuracy": 1.0, "parsed": 1.0}
    assert grade_option(example, "Option A is correct.") == {"accuracy": 0.0, "parsed": 1.0}
    assert grade_option(example, "Option A or B is correct.") == {"accuracy": 0.0, "parsed": 0.0}

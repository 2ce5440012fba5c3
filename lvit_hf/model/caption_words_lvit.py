# Copyright 2026 The lvit_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Tables of words for the grammar of captions: what people write, and what it stands for."""


def _words(table: str) -> tuple[str, ...]:
    return tuple(table.split())


NUMBERS = ("one", "two", "three", "four", "five", "six")
NUMBER_WORDS = NUMBERS + _words(
    "seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
)


def _phrases(table: str) -> dict[str, str]:
    """Reads lines of `phrase, phrase, ... = words`: what stands for what, or for nothing.

    What an image does not show, such as a place in the body, becomes one "word" with low lines in it. No family knows
    such a word, and so it is reported as not understood.
    """
    pairs = [line.split("=") for line in table.strip().splitlines()]
    return {phrase.strip(): words.strip() for phrases, words in pairs for phrase in phrases.split(",")}


# A word is not corrected into one that differs in such a beginning, which may turn its meaning round.
PREFIXES = _words(
    "a ab an anti bi de dis hyper hypo il im in inter intra ir mono multi non post pre re sub super un uni"
)
# Endings by which a word differs from another one, and not from itself misspelt.
ENDINGS = _words("d ed th ing ly er est y al ity ness ion ions r n")
# Words that look like misspelt ones.
NOT_MISSPELT = _words(
    """
    injection injected inflection interior clearly normally clearing shall smell destiny consideration considerations
    consolation last list lost beside chance unseen event coronal internal integral rejected respected heard hear heat
    based basis built blown mind path paths stall casual
    """
)

# Traditional characters of Chinese terms, each with the simplified one.
TRADITIONAL = str.maketrans(
    "無沒雙側葉腫處個為區兩與結節惡圖細腸顯見現發點鐘異積滲陰塊狀圓橢潰瘍頂邊單瀰彌變竈實潤對較佈規則勻",
    "无没双侧叶肿处个为区两与结节恶图细肠显见现发点钟异积渗阴块状圆椭溃疡顶边单弥弥变灶实润对较布规则匀",
)

# How words, abbreviations and signs are written: patterns that are replaced in lower-case text, in this order.
SPELLINGS = (
    (r"[’‘`]", "'"),
    (r"\b(?=bi-?rads)", "breast "),
    (r"\bcan'?t\b|\bcannot\b", "can not"),
    (r"\bwon't\b", "will not"),
    (r"n't\b", " not"),
    (r"\b(is|are|was|were|do|does|did|has|have|could|would|should)nt\b", r"\1 not"),
    (r"\br\s*/\s*o\b", "rule out"),
    (r"\bh\s*/\s*o\b", "history of"),
    (r"\bw\s*/\s*o\b", "without"),
    (r"\bnumber of (\w+)\s*[:=]\s*(?=\d)", r"\1: "),
    (r"\bw/\s*", "with "),
    (r"(?<![\w?])\?\s*(?=[a-z])", "query "),
    (r"\b(bilat|cons|approx|lt|rt|l|r)\.(?=\s)", r"\1"),
    (r"\bbi[\s-]+(?=basal|basilar|apical|lateral)", "bi"),
    (r"\b0\s+(?=[a-z]{3})|(?<=[:=])\s*0(?=\s*(?:[,.;]|$))", " zero "),
    (r"\b(?!bi-?rads)(\w+s)\s*[:=]\s*(\d{1,2})(?=\s*(?:[,.;]|$))", r"\2 \1"),
    (r"'s\b", ""),
    (r"\b(non|un)[\s-]+(?=[a-z])", r"\1"),
    (r"\b(?:covid|sars)(?:[\s-]*(?:cov[\s-]*2|19))?\b", "covid"),
    (r"\bx[\s-]?rays?\b", "xray"),
    (r"\bo'? ?clock\b", "oclock"),
    (r"[&+]", " and "),
    (r"(\d+)点钟?(?:方向|位置?)?", r" \1 oclock "),
    (r"[\n。]|[!?](?=\s|$)", " ; "),
    (r"、", " , "),
    (r":(?=\s*[^\x00-\x7f])", " : "),
    (r"(图[像片]?|影像)中(?![央心间部])", r"\1"),
)

_STUDY = r"(?:study|exam|examination|scan|film|radiograph|x-?ray|image|ct|ultrasound|mammogram|colonoscopy)"
_EARLIER = rf"(?:(?:the|a)\s+)?(?:prior|previous|last|earlier|old)\s+{_STUDY}"
_DAYS = (
    r"(?:on\s+)?(?:yesterday|(?:mon|tues|wednes|thurs|fri|satur|sun)day|last\s+(?:week|month|year)|(?:\w+\s+){1,2}ago)"
)
_BEFORE = rf"(?:(?:on|in|at)\s+{_EARLIER}|previously|before|{_DAYS})\b"
_ABSENT_THEN = r"not\s+(?:present|seen|visible|there|identified|noted)"
_TOUCHING = r"obscur(?:es|ing)|silhouett(?:es|ing)|abut(?:s|ting)"
_BESIDE = rf"(?:near|(?:just\s+)?above|beside|below|behind|next to|adjacent to|{_TOUCHING})(?:\s+of)?"
_OBJECT = r"(?:polyp|mass|tumou?r|lesion|nodule)"
_SIZE = r"(?:small|tiny|large|big)"
_CHANGES = r"(?:change|progression|worsening|increase|improvement|decrease|deterioration|clearing|resolution)s?"
_HOW_MUCH = r"(?:any|significant|appreciable|interval|substantial|further|definite|marked|notable|major)"
_INFECTION = r"(?:pneumonia|infection|consolidation|opacit(?:y|ies)|infiltrate)s?"
_LUNG_PARTS = r"(?:left|right|upper|lower|middle|mid|lungs?|lobes?|zones?|base|apex|apical|basal|the|bilateral)"

# What turns of phrase say in plainer words: patterns that are replaced after those of spelling, in this order.
PHRASINGS = (
    (
        r"\b(?:rather than|instead of|as opposed to|more likely than)\s+(?=(?:\w+\s+)?"
        r"(?:pneumonia|infection|infectious|consolidation|infiltrate|pneumonitis)s?\b)",
        "without ",
    ),
    (r"\b(?:mother|father|sister|brother|aunt)s?\s+(?:had|has|with)\b", "history of"),
    (r"(?:^|(?<=[.;]))\s*(?:ruled out|excluded|absent|negative|not (?:seen|present|found))\s*:", " no "),
    # What did not change, or not wholly, is there.
    (rf"\b(?:no|without|absence of|lack of)\s+(?:{_HOW_MUCH}\s+)*{_CHANGES}\b(?:\s+(?:in|of)\b)?", " "),
    (
        r"\b(?:fail(?:s|ed|ing|ure)|partial|incomplete|near[\s-]complete|delayed|slow)\s+(?:of\s+|to\s+)?resol(?:ution|ve)(?:\s+of)?\b",
        " ",
    ),
    (
        r"\b(?:not(?:\s+yet)?\s+(?:completely|fully|entirely)|partial(?:ly)?|partly|largely|mostly|almost|nearly|incomplete(?:ly)?)\s+"
        r"(?:completely\s+)?(?:resolved|cleared|disappeared|gone|removed|resected|excised)\b",
        " ",
    ),
    (r"\bno longer as \w+", " "),
    (
        r"\b(?:(?:should|must|can|could|will|may|might)\s+be|being|not(?:\s+yet)?|before it was|was later)\s+"
        r"(?:\w+ly\s+)?(?:removed|resected|excised)\b",
        " ",
    ),
    # What was not there before is new, and what was there before need not be there now.
    (
        rf"\b(?:(?:which|that)\s+)?(?:(?:was|were)\s+)?"
        rf"(?:(?:{_ABSENT_THEN}|absent)\s+{_BEFORE}|not\s+previously\s+(?:present|seen|visible|there))",
        " ",
    ),
    (
        rf"\b(?:(?:is|are|more|less|slightly|much|extensive|larger|smaller|worse|better)\s+)*(?:than|as)\s+(?:on\s+|in\s+)?{_EARLIER}\b",
        "",
    ),
    (
        rf"\b((?:[^\W_]+\s+)*)(?:on|in)\s+{_EARLIER}\b(?![^.;]*\b(?:persist|unchanged|remain|still|larger|smaller))",
        r" asked \1",
    ),
    (r"\bhistory of\b([^.;,]*?)\s(?:presents?\s+|presenting\s+|now\s+)?with\b", r"history of\1, "),
    (r"\bpreviously\s+(?:in|at|on|within)\b[^.;,]*", ""),
    (r"\b(?:migrated|moved|shifted)\s+from\s[^.;,]*?\sto\b", "in"),
    (
        r"(?<!to )(?<!with )(?<!since )(?<!from )(?<!than )"
        rf"\b(?:previous|prior|treated|healed)\s+(?=(?:\w+\s+){{0,4}}{_INFECTION}\b)(?!.*\b(?:now|clear|resolved)\b)",
        "history of ",
    ),
    (r"^.*?[.;,]\s*(?=(?:today|now|currently)\b[^.;,]*\b(?:chest|lungs?|film)\b[^.;,]*\b(?:clear|normal)\b)", ""),
    (rf"^.*?[.;,]\s*(?=(?:today|now|currently)\s+no\s+(?:\w+\s+)?{_INFECTION}\b)", ""),
    (r"^.*?[.;,]\s*(?=[^.;,]*\b(?:chest|lungs?|film)\b[^.;,]*\b(?:clear|normal)\s+(?:today|now|currently)\b)", ""),
    (rf"(?:\bwith\s+|,\s*)((?:{_LUNG_PARTS}\s+)+)sparing\b", r" except \1"),
    (r"\b(all|everything|everywhere|entire|whole)\b([^.;,]*?)\bbut\b", r"\1\2except"),
    (
        r"\b(?:apart from|except for|except|aside from|other than)\s+([^,.;]*?)\s+(?=(?:there (?:is|are) )?no\b)",
        r"except \1 , ",
    ),
    # "The right lung is clear; the left is not", and the other way round.
    (
        r"(\bclear\b[^.!?]*\b(?:lungs?|left|right|one|base|apex|zones?)\s+(?:is\s+|are\s+)?not)(?=\s*(?:[.;!?]|$))",
        r"\1 clear",
    ),
    (r"(\bnot\s+clear\b[^.!?]*\b(?:is|are))(?=\s*(?:[.;!?]|$))", r"\1 clear"),
    (r"\b(?:chance|risk|likelihood|probability)\s+of\s+(?:cancer|malignancy)(?:\s+is\s+\w+)?", ""),
    # Of two sides the worse one is not the only one.
    (r"\b(?:l|lt|left|r|rt|right)\s*[<>]\s*(?:l|lt|left|r|rt|right)\b", "bilateral"),
    (r"\b(?:left|right)\s+(?:more|less|worse|greater)\s+(?:\w+\s+)?than\s+(?:the\s+)?(?:left|right)\b", ""),
    (
        r"(\b(?:bilateral(?:ly)?|bilat|both)\b[^.;]*?)\b(?:more|most|worse|greater|predominantly|mainly|mostly)\s+(?:\w+\s+)?"
        r"(?:on|in)\s+the\s+(?:left|right)(?=\s*(?:$|[,.;)]|side|than))",
        r"\1",
    ),
    (r",?\s*(?:\band\s+)?\b(?:to\s+a\s+lesser\s+(?:extent|degree)|with\s+lesser\s+involvement\s+of)\b", " and "),
    # What lies beside something has its height.
    (
        rf"\b{_BESIDE}\s+(?:the\s+)?(left|right)?\s*(?:hemi)?diaphragms?(?:\s+on\s+the\s+(left|right))?",
        r"in the lower \1 \2 lung",
    ),
    (rf"\b{_BESIDE}\s+(?:the\s+)?(left|right)?\s*heart\s+borders?", r"in the middle \1 lung"),
    (rf"\b{_BESIDE}\s+(?:the\s+)?(left|right)?\s*clavicles?", r"in the upper \1 lung"),
    (r"\bon\s+top\s+of\b", "with"),
    (r"\bu/l\b", "upper zone"),
    (r"\bm/l\b", "middle zone"),
    (r"\bl/l\b", "lower zone"),
    # One object beside another, and what is said of other things than objects.
    (
        r"\b(?:next to|beside|near|below|above|(?:to the )?(?:left|right) of)\s+"
        rf"(?=(?:a|another|one)\s+(?:\w+\s+)?(?:one|{_OBJECT})\b)",
        "and ",
    ),
    (rf"\b(a|one)\s+({_SIZE})\s+and\s+(a|one)\s+({_SIZE})\s+({_OBJECT})\b", r"\1 \2 \5 and \3 \4 \5"),
    (rf"\b(?:the\s+)?(?:first|second|third)\s+(?={_OBJECT}\b)", "one "),
    (r"\b(?:small|large|moderate)\s+amounts?\s+of\b", ""),
    (r"\bsmall\s+(?=(?:bowel|intestine)\b)", ""),
    (
        rf"\b(?:{_SIZE}|smooth)\s+(?=(?:\w+\s+)?(?:base|vessels?|mucosa|ulcers?|stalk|pedicle|folds?)\b)",
        "",
    ),
    (r"\bleft\s+in\s+(?:situ|place)\b", ""),
    (r"\b(?:largest|biggest|greatest|maximum)\s+(?=diameter|dimension|extent|size)", ""),
    (r"\beach\s+(?=(?:upper|middle|lower)\b)", "both "),
    (r"\b(upper|lower|mid|middle)[\s-]+(?:lobe|zone|lung)[\s-]+predominant\b", r"both \1 zones"),
    (r"\bbasal[\s-]+predominant\b", "both lower zones"),
    (r"\bapical[\s-]+predominant\b", "both upper zones"),
    (r"\b(lower|upper)\s+two[\s-]+thirds\b", r"\1 and middle"),
    # A part of a lobe is in the lobe's zone.
    (
        r"\b(?:superior|inferior|apical|basal|anterior|posterior|lateral|medial|upper|lower|mid|middle)"
        r"(?:[\s-]+(?:basal|lingular))?\s+(?:sub)?(?:segment|part|portion|aspect)s?\s+of\s+(?:the\s+)?"
        r"(?=(?:left\s+|right\s+)?(?:upper|middle|lower)\s+lobes?\b|[rl](?:u|m|l)l\b|lingula)",
        "",
    ),
    (r"\b(?:superior|inferior)\s+(?=lingul)", ""),
    # "a small one" and "two small ones"
    (r"\b(?:one|another|an?|the|other|1)\s+(?!second|other|first|third)(\w+)\s+ones?\b(?!\s+oclock)", r"one \1"),
    (r"\bones\b", ""),
    (r"\bleft and right (breast|colon)\b", r"\1"),
)

# A question, which states nothing, unless it is a request.
QUESTION = r"[^.;!?\n。]*\?(?=\s|$)"
REQUEST = r"\s*(?:where|which|what|can|could|would|please|segment|find|show|mark|outline|locate|highlight)\b"

# By what a caption says itself whose left and right it means.
_SHOWN_IN = r"(?:image|picture|film|radiograph|x-?ray|photo|photograph|frame|screen)"
SIDES_NAMED = {
    "patient": r"\bpatient(?:'?s|’s)?\s+(?:own\s+)?(left|right)\b"
    r"|\banatomical(?:ly)?\s+(left|right)\b"
    r"|\b(left|right)\b[^.,;()]{0,30}\bof\s+the\s+patient\b"
    r"|[患病][者人]的?([左右])",
    "image": rf"\b(?:{_SHOWN_IN}|viewer)(?:'s|’s)?\s+(left|right)\b"
    rf"|\b(left|right)\b[^.,;()]{{0,30}}\bof\s+(?:the|this)\s+{_SHOWN_IN}\b"
    r"|图[像片]?的?([左右])",
}

_NUMBER = r"\d+(?:[.,]\d+)?"
# A length, another measure or the name of something is one word, so that its number is not taken for a count.
MEASURE = "|".join(
    (
        r"\d{1,4}([/.-])\d{1,2}\1\d{1,4}\b",
        r"\d{1,2}:\d{2}(?::\d{2})?\b",
        rf"{_NUMBER}(?:\s*(?:[x×*,–-]|by|to|and|or)\s*{_NUMBER})*[\s-]*"
        r"(?:mm|cm|ml|cc|%|percent|(?:milli|centi)met(?:er|re)s?|years?|yrs?|days?|weeks?|months?|hours?|h)(?![a-z])",
        r"\d+\s*(?:[–-]|to|and|or)\s*\d+\s*oclock\b",
        r"\d+\s*/\s*\d+\b",
        r"\b(?:paris\s+)?0-?i{1,3}[a-z]*\b",
        r"\bbbps\s*[:=]?\s*\d(?:\s*and\s*\d)*\b",
        r"\bbi-?rads(?:\s*(?:category)?\s*[:=-]?\s*\d[a-c]?)?",
        r"\b(?:type|grade|class|score|category|stage|segment|level|day|week|number|nr|acr)\s*[:=]?\s*\d+[a-c]?\b",
        r"\b(?:image|frame|patient|case|fig|figure|slide|slice|series|view)\.?\s*#?\s*\d+\b(?=\s*[:;,.)]|\s*$)",
        r"\bfig\.?\s*\d+\b",
        r"\bno\.\s*\d+\b",
        r"#\s*\d+\b",
    )
)
_COUNT = rf"(?:\d{{1,2}}|{'|'.join(NUMBER_WORDS)})"
# How many there are is not known.
RANGE = rf"\b{_COUNT}\s*(?:[–-]|to|or)\s*{_COUNT}\b"

# Words that say nothing, in any caption.
FILLERS = frozenset(
    _words(
        """
        , ; : and or but except a an the of in on at to by for from with within into over along near this that these
        those it its as which is are was were be been being has have had there here image located scan view study exam
        examination frame patient case finding findings result results impression report shows show showing shown
        demonstrates demonstrate demonstrated reveals reveal revealed seen see visible noted note identified found
        present appears appear appearing detected observed visualized visualised evident suspected suspicious suspicion
        possible possibly probable probably likely suggesting suggestive suggest consistent compatible represent
        representing indicating indicate concerning evidence sign signs any some only also mainly mostly predominantly
        especially particularly more most very slightly mildly marked markedly clearly definite definitely mild
        moderate severe severity extensive focal multifocal single solitary isolated new old acute chronic active
        recent early late current currently now again still remains remain other another additional anywhere
        involving involved involvement affecting distribution side sided aspect part portion region area location
        position site corner edge quadrant half third section spot just about approximately where what can could
        may might will should would does do did we i you our your please segment find containing contains contain
        overall otherwise respectively each every including include well both too limited confined restricted localized
        localised situated lying lies involves affects occupies occupying measures measuring persistent residual
        increasing worsening stable improving progressive known significant due secondary x concern concerns now worse
        pronounced prominent dominant concentrated centered worst maximal apparent previous previously prior elsewhere
        else remainder rest further convincing discrete overt frank radiographic radiological radiologic obvious
        discernible appreciable underlying gross superimposed developing detectable perceptible conclusive interval
        recurrent development viewer compared comparison confirmed today treated treatment same essentially
        grossly largely completely perfectly practically look looks relatively fairly generally sits sit hangs pretty
        """
    )
)

# Cues of negation. All of them become one of three words: "no" speaks of what follows, "absent" of a finding that is
# named beside it, and "clear" of an organ or a place.
NEGATIONS = _phrases(
    """
    not, without, never, neither, none, none of = no
    absence of, absense of, lack of, free of, free from, clear of, negative for, nil = no
    zero, devoid of, rules out, denies, fails to show, is negative for, no evidence of, no sign of = no
    resolution of, interval resolution of, complete resolution of = no
    unlikely to be, unlikely to represent, not likely to be, not likely to represent, unlikely for = no
    argue against, argues against, arguing against, speak against, speaks against = no
    not call this, not look like, not called, not think there any, not think there is any, not think there is = no
    not see any = no
    not see anything wrong, nothing wrong = no abnormality
    rule out, to rule out, exclude, to exclude, history of, past history of, history, query, indication = asked
    if, status post, s p, post treatment for, post treatment of = asked
    clinical indication, clinical question, clinical history, reason for exam, evaluate for, assess for = asked
    low suspicion for, low suspicion of = no
    less likely = absent
    clear bilaterally, normal bilaterally, unremarkable bilaterally, clear on both sides = clear
    nor, and no other, or no = or
    ruled out, excluded, resolved, has resolved, negative, cleared, has cleared, gone, disappeared, vanished = absent
    removed, resected, excised, ablated, not present, not seen, unseen, unlikely = absent
    not visible, not identified, not detected, not evident, not found = absent
    not observed, not visualized, not visualised, not appreciated, not demonstrated, not shown, not there = absent
    no longer seen, no longer visible, no longer present, no longer evident, free, has gone = absent
    within normal limits, within normal range, normal, unremarkable, healthy, unaffected, uninvolved, spared = clear
    spares, intact, clean, clear, clears = clear
    wnl, uninfected, noninfected, non infected, not infected, not affected, not involved, unaffected by = clear
    nad, nothing, nothing abnormal, no abnormal finding, no abnormal findings, no finding, no findings = no abnormality
    abnormalities, abnormal area, abnormal areas, acute finding, acute findings = abnormality
    significant finding, significant findings, pathology, pathological finding, pathological findings = abnormality
    abnormal, not normal, not clear, no longer clear, not entirely clear, not completely clear = abnormality
    not ruled out, not excluded, not be ruled out, not be excluded, not exclude, not rule out, no longer normal =
    not only, no doubt, without doubt, not yet resolved, not resolved, no longer absent, not absent =
    no more than, not more than, no fewer than, no less than, not less than =
    not improved, not worsened, not changed, unchanged, not increased, not resolving, no increase =
    to be resected, to be removed, for resection, for removal, before resection, before removal =
    to be excised, decided to remove, decided to resect, with respect to =
    no clear, no longer = no
    except for, other than, apart from, aside from, besides, excluding, sparing, with exception of = except
    with the exception of, save for, with sparing of, outside, outside of = except
    as well as, along with, together with, in addition to, plus = and
    on the other hand, however, whereas, while, although, though, yet = but
    """
)

# Numbers of objects, and what people call places and sizes in any image.
COMMON = _phrases(
    """
    a pair of, a couple of, couple of = two
    centre, central, centrally, centered, centred, centrally located, in the middle of the image = center
    tiny, little, diminutive, minute, smallish, small sized, minuscule = small
    big, huge, giant, sizable, sizeable, bulky, large sized = large
    largest, the largest, biggest, the biggest, largest one, biggest one = one large
    smallest, the smallest, smallest one = one small
    medium sized, medium size, mid sized, mid size, moderate sized, moderately sized, average sized = medium
    intermediate = medium
    leftward, leftmost, left sided, left side, left hand side = left
    rightward, rightmost, right sided, right side, right hand side = right
    right of center, right of the center, right of middle, right of the middle = right
    left of center, left of the center, left of middle, left of the middle = left
    above center, above the center = top
    below center, below the center = bottom
    topmost, uppermost = top
    bottommost, lowermost, lowest = bottom
    """
)

# Names of things of which a family that does not know them cannot speak.
FOREIGN = frozenset(
    _words(
        """
        lung lungs pulmonary chest thorax breast colon colonic colorectal rectal polyp polyps nuclei nucleus brain
        cerebral liver hepatic kidney renal spleen pancreas pancreatic prostate bladder uterus uterine ovary ovarian
        cervix cervical thyroid skin cutaneous melanoma mole retina retinal optic eye eyes iris cornea bone bones
        spine spinal vertebra vertebral vertebrae hip knee shoulder wrist ankle elbow hand foot finger skull jaw
        teeth tooth dental stomach gastric esophagus oesophagus esophageal gallbladder nose nasal sinus throat tongue
        ear heart cardiac artery aorta fetus fetal muscle tendon hippocampus dog dogs cat cats horse bird fish cow
        animal puppy kitten car cars truck bus bicycle train plane boat house building tree trees flower flowers
        person people man woman child face sky sea beach mountain city street road table chair cup bottle food pizza
        cake apple banana phone computer book leg limb arm eyelid dermis wound calf thigh vaccine urinary
        """
    )
)

# What may lie in several organs.
DEVICES = frozenset(_words("tube catheter"))

LUNG_FILLERS = _words(
    """
    zone zones field fields base bases patchy peripheral peripherally lateral medial posterior anterior
    subpleural airspace interstitial reticular nodular lobar segmental confluent dense faint subtle viral bacterial
    etiology radiograph xray film frontal pa ap ct greater predominance predominant symmetric asymmetric
    scattered multiple several few many infectious process changes change size extending extends spread spreading level
    levels resolving small large medium parenchymal aspiration air space community acquired infective
    """
)
# Findings of a chest image that a mask of infection does not show.
LUNG_OTHERS = _words(
    """
    effusion effusions pneumothorax pneumothoraces cardiomegaly fracture fractures nodule nodules mass masses tumor
    tumors tumour heart cardiac silhouette mediastinum mediastinal rib ribs pleura diaphragm hemidiaphragm aorta
    trachea edema oedema emphysema atelectasis collapse lymphadenopathy embolism pleural thickening
    calcification cavity fibrosis scar scarring device tube catheter pacemaker
    """
)
LUNG_PHRASES = _phrases(
    """
    chronic obstructive pulmonary disease, copd, interstitial lung disease, chronic lung disease = emphysema
    obstructive lung disease, pulmonary vascular disease = emphysema
    heart disease, vascular disease = heart
    ptx = pneumothorax
    pna, cap, lrti, lower respiratory tract infection, airspace dz = pulmonary infection
    ul, uls = upper zone
    ll, lls = lower zone
    uz = upper zone
    mz = middle zone
    lz = lower zone
    rul, ruz = upper right lung
    rml, rmz = middle right lung
    rll, rlz = lower right lung
    lul, luz = upper left lung
    lml, lmz = middle left lung
    lll, llz = lower left lung
    lingula, lingular, lingular segment, left lingula = middle left lung
    retrocardiac, retrocardiac region, left retrocardiac = lower left lung
    l, lt = left
    r, rt = right
    b l, bilat = bilateral
    from apex to base, from the apex to the base, apex to base = all
    hemithorax, hemi thorax, lung field = lung
    lung fields, hemithoraces = lungs
    apex, apical, apically, top, superior, upwards, cranial = upper
    apices, lung apices = upper zones
    mid, hilum, hila, perihilar, hilar, parahilar, central, center, midzone, middle third, mid lung = middle
    midzones = middle zones
    suprahilar, paratracheal = upper
    infrahilar, paracardiac, pericardiac, cardiophrenic, cardiophrenic angle, cardiophrenic angles = lower
    middle lobe, right middle lobe, middle lobe of right, middle lobe of the right = right middle lobe
    left middle lobe, middle lobe of left, middle lobe of the left, left lung middle lobe = left middle lobe
    right lung middle lobe = right middle lobe
    base, basal, basilar, bottom, inferior, caudal, basally = lower
    costophrenic angle, costophrenic angles, costophrenic = lower pleura
    bases, lung bases = lower zones
    bibasal, bibasilar, both bases, both lung bases, both basal = both lower lung
    biapical, both apices, both lung apices = both upper lung
    either lung, each lung, both lungs, either = both lung
    bilaterally, on both sides, both sides, bilateral lungs, bilateral lung = bilateral
    on either side, either side = bilateral
    apical to basal, everything = all
    entire, whole, throughout, diffuse, diffusely, everywhere, complete, total, widespread, all over = all
    pneumonia, pneumonias, pneumonitis, bronchopneumonia, pneumonic = pulmonary infection
    covid pneumonia, covid infection, covid lesions, covid, coronavirus, corona virus = pulmonary infection
    consolidation, consolidations, consolidative, consolidated = pulmonary infection
    opacity, opacities, opacification, opacified, whiteout = infection
    infiltrate, infiltrates = pulmonary infection
    infiltration, infiltrative, ground glass opacity, ground glass opacities, ggo = infection
    ggos, ground glass, groundglass, haze, haziness, hazy, shadowing, shadow, shadows, opaque, white out = infection
    whiteness, white area, white areas, white patch, white patches, cloudiness, cloudy = infection
    airspace disease, air space disease, air space opacity, airspace opacity, disease = infection
    patch, patches, cons, density, densities = infection
    infections, inflammation, inflammatory, affected, diseased, infected lesions = infected
    cardiopulmonary disease, cardiopulmonary abnormality, cardiopulmonary process = pulmonary infection
    infectious process, acute process, air bronchogram, air bronchograms, lesion, lesions = infection
    more on the left, more on the right, more pronounced on the left, more pronounced on the right =
    greater on the left, greater on the right, left worse than right, right worse than left =
    right greater than left, left greater than right, worse on the right, worse on the left =
    right more than left, left more than right =
    """
)

# Paraphrases of the data compare shapes with things, which the schemas do not hold.
POLYP_LIKENESSES = _words("kidney heart ear donut toe thumb nail mouth flat rectangle semicircle triangular")
BREAST_LIKENESSES = _words("heart rectangle triangular triangle star diamond square fingerprint shadow")
POLYP_FILLERS = (
    *("colonic", "shape", "white", "yellow", "brown", "pink", "orange", "tan", "red", "black", "gray", "peach"),
    *("located", "in", "of", "the", "image", "a", "it", "is"),
)
POLYP_OTHER_FILLERS = _words(
    """
    sessile pedunculated stalked flat raised protruding surface textured colored coloured sized
    colour color endoscopic endoscopy endoscopist caecum ascending descending transverse
    reddish whitish yellowish pinkish hyperplastic serrated tubular tubulovillous villous adenomatous
    green blue paris type polypectomy emr esd post tissue resection
    """
)
# What else such an image shows, which a mask of polyps does not.
POLYP_OTHERS = _words(
    "fold folds stalk pedicle wall lumen ulcer ulcers colitis proctitis bubble bubbles stool scar scars"
)
POLYP_PHRASES = _phrases(
    """
    adenoma, adenomas, polypoid lesion, polypoid mass, polypoid growth, polypoid, colonic lesion, colon lesion = polyp
    lesion, lesions, mucosal lesion, sessile lesion, flat lesion, pedunculated lesion, colorectal lesion = polyp
    another, another one, a second one, the other one = one
    irregular surface, irregular margin, irregular margins, irregular border, irregular borders = irregular_outline
    irregular outline = irregular_outline
    irregular vessels, irregular pattern, irregular pits, irregular pit pattern = irregular_pattern
    laterally spreading tumor, laterally spreading tumour, laterally spreading lesion, lst, colonic mass = polyp
    colonic tumor, colonic tumour, rectal mass, rectal tumor, rectal tumour = polyp
    polypoid lesions, colonic lesions, lesion of the colon, lesion in the colon = polyp
    hepatic flexure, splenic flexure = colonic
    colorectal, large intestine, large bowel, left colon, right colon, left side of colon = colonic
    spherical, rounded, roundish, disc, disk, circular shaped, circle shaped, ball = circular
    oblong, elongated, ellipse, elliptic, egg = elliptical
    lobulated, lobed, multilobulated, multilobed, irregularly = irregular
    cauliflower, cauliflower like, cauliflower shaped, cauliflowerlike = cauliflower shaped
    of the lumen, of lumen, in the lumen, of the wall, on the wall, in the wall, along the wall =
    behind a fold, behind the fold, on a fold, on the fold, beside a fold, beside the fold =
    near a fold, near the fold =
    nonulcerated, unulcerated =
    ulcerative colitis = colitis
    ulcerative proctitis = proctitis
    mid = middle
    ulcerous, ulcerative, ulceration, with ulcer, with an ulcer, with ulceration = ulcerated
    partly smooth, partial smooth, mostly smooth, semi smooth = partially smooth
    twelve oclock = top middle
    one oclock, two oclock = top right
    three oclock = middle right
    four oclock, five oclock = bottom right
    six oclock = bottom middle
    seven oclock, eight oclock = bottom left
    nine oclock = middle left
    ten oclock, eleven oclock = top left
    """
)

NUCLEI_FILLERS = ("density", "high", "higher", "distributed", "the", "are", "in", "is")
NUCLEI_OTHER_FILLERS = _words(
    """
    highly dense densely denser packed stained staining stain tissue slide histology histological pathology
    micrograph h e hematoxylin haematoxylin eosin he number numbers arranged spaced concentration
    clustered cluster clusters many several multiple crowded crowding populated spread wide widespread
    """
)
# What slides are of.
NUCLEI_ORGANS = _words(
    """
    kidney renal prostate prostatic breast liver hepatic colon colonic bladder stomach gastric lung gland glands
    carcinoma adenocarcinoma lumen
    """
)
NUCLEI_PHRASES = _phrases(
    """
    cell nuclei, cell nucleus, nuclear, cells, cell, cellular = nuclei
    cellularity = nuclei
    hypercellular, hypercellularity = dense nuclei
    hypocellular, hypocellularity, paucicellular = sparsely nuclei
    uniformly, uniform, homogeneously, homogeneous, even, equally, regularly, regular = evenly
    irregularly scattered, scattered irregularly = irregularly
    evenly scattered, scattered evenly = evenly
    sparse, thinly, scarce, scattered, loosely, only a few, few, fewer = sparsely
    low, low density, lower density, density is lower, density is low, less dense = sparsely
    unevenly, uneven, irregular, heterogeneously, heterogeneous, nonuniformly, nonuniform = irregularly
    randomly, random, at random = irregularly
    not evenly, not uniformly, not evenly distributed, not uniform, not even = irregularly
    peripheral, peripherally, edges, border, borders, boundary, rim, margins, at the edge, at the edges = around
    """
)

BREAST_FILLERS = ("breast", "ultrasound", "image", "circle", "oval", "shaped", "a")
BREAST_OTHER_FILLERS = _words(
    """
    sonogram sonography sonographic us bus hypoechoic hyperechoic anechoic isoechoic echogenic heterogeneous
    homogeneous solid cystic complex simple spiculated microlobulated lobulated angular indistinct circumscribed
    defined ill smooth margin margins border borders boundary boundaries irregular regular round rounded elliptical
    ellipse circular shape posterior acoustic vascular avascular calcified
    taller wider than wide tall parallel sized focus glandular fibroglandular
    fatty lumpectomy mastectomy biopsy
    """
)
# Findings of such an image that a mask of lesions does not show.
BREAST_OTHERS = _words(
    """
    calcification calcifications node nodes duct ducts implant implants scar scars shadowing enhancement tissue
    parenchyma probe nipple areola skin fat muscle wall vascularity
    """
)
BREAST_PHRASES = _phrases(
    """
    lesion, lesions, mass, masses, nodule, nodules, tumour, tumours, neoplasm, lump, lumps, growth = tumor
    mass lesion, mass lesions, nodular lesion = tumor
    another, another one, a second one, the other one = one
    cyst, cysts, fibroadenoma, fibroadenomas = benign tumor
    cancer, cancers, carcinoma, carcinomas, malignancy, dcis, idc, ilc = malignant tumor
    malignancy can not be excluded, malignancy not excluded, not exclude malignancy, not rule out malignancy = tumor
    cancerous, nonbenign, not benign = malignant
    noncancerous, non cancerous, nonmalignant, non malignant, not malignant, not cancerous, harmless = benign
    left breast, right breast, both breasts, breasts = breast
    breast tissue, glandular tissue, fibroglandular tissue, breast parenchyma = breast
    rectangular = rectangle
    skin lesion, skin lesions, skin tumor, skin mass, skin cancer = melanoma
    mid = middle
    chest wall, pectoral muscle, pectoral muscles, muscle layer = muscle
    subcutaneous fat, subcutaneous tissue, subcutaneous = fat
    unlikely malignant = no malignant
    unlikely benign = no benign
    upper outer quadrant, upper outer = upper_outer_quadrant
    upper inner quadrant, upper inner = upper_inner_quadrant
    lower outer quadrant, lower outer = lower_outer_quadrant
    lower inner quadrant, lower inner = lower_inner_quadrant
    one oclock = 1_o'clock
    two oclock = 2_o'clock
    three oclock = 3_o'clock
    four oclock = 4_o'clock
    five oclock = 5_o'clock
    six oclock = 6_o'clock
    seven oclock = 7_o'clock
    eight oclock = 8_o'clock
    nine oclock = 9_o'clock
    ten oclock = 10_o'clock
    eleven oclock = 11_o'clock
    twelve oclock = 12_o'clock
    """
)

# Chinese terms, the longest first; what is left of a Chinese caption is reported as not understood.
CHINESE = _phrases(
    """
    没有发现, 未发现, 没有看到, 未见明显, 未见, 没有, 不存在, 无明显 = no
    无, 未, 而非, 而不是, 并非, 不是, 不在 = no
    不能完全排除, 不能排除, 未能排除, 不排除, 未排除, 不能除外, 未能除外, 不除外, 待排除, 待排 = possible
    不消失, 未消失, 未吸收, 未见消失 =
    无蒂 = sessile
    有蒂, 带蒂, 亚蒂 = pedunculated
    大者 = one large
    小者 = one small
    恶性待定, 良恶性待定, 良恶性不明, 良恶性 = uncertain
    肝脏, 肝 = liver
    脑部, 脑 = brain
    肾上腺, 肾脏, 肾 = kidney
    甲状腺 = thyroid
    前列腺 = prostate
    胆囊 = gallbladder
    胰腺, 胰 = pancreas
    子宫 = uterus
    卵巢 = ovary
    膀胱 = bladder
    皮肤 = skin
    食管 = esophagus
    心脏, 心影 = heart
    鼻 = nose
    脾 = spleen
    胃 = stomach
    骨 = bone
    眼 = eye
    未被感染, 未感染, 未受累 = clear
    不均匀分布, 分布不均匀, 分布不均, 不均匀 = irregularly distributed
    均匀分布, 分布均匀, 均匀 = evenly distributed
    稀疏分布, 分布稀疏, 稀疏 = sparsely distributed
    不规则分布, 分布不规则 = irregularly distributed
    不规则形, 不规则, 形状不规则 = irregular
    已排除, 排除, 已消失, 消失, 已吸收, 完全吸收, 已完全吸收, 基本吸收, 已基本吸收, 已治愈, 治愈, 已愈 = absent
    已切除, 切除, 已摘除, 摘除, 完全切除, 已完全切除, 已经切除, 圈套切除, 已经圈套切除, 已清除 = absent
    术后复查, 切除术后, 术后 = absent
    待切除, 拟切除, 建议切除, 未切除, 部分吸收, 吸收不全, 未完全吸收, 较前吸收, 有所吸收, 吸收中 =
    可能性小, 可能性不大, 可能性低, 可能性较小 = absent
    可能性大, 可能性高, 可能性较大 = likely
    不太可能是, 不太可能, 不像, 不考虑 = no
    非溃疡性 =
    缩小, 增大, 较前增大, 较前缩小, 不足, 充足 =
    陈旧性病灶, 陈旧性病变, 陈旧病灶 = scar
    透亮度减低, 透光度减低, 透亮度降低 = opacity
    左手, 右手 = hand
    左足, 右足 = foot
    左耳, 右耳 = ear
    上肢, 下肢, 左上肢, 左下肢, 右上肢, 右下肢, 左下肢体, 腿 = limb
    牙齿, 牙 = tooth
    尿路, 泌尿 = urinary
    很少 = sparsely
    低 = low
    异常 = abnormality
    考虑 = suspected
    病毒性 = viral
    细菌性 = bacterial
    陈旧性 = old
    主要 = mainly
    炎性病变, 炎性, 感染性病变, 感染性 = infection
    肺炎症 = lung inflammation
    高密度影 = opacity
    纤维腺瘤 = fibroadenoma
    囊性 = cystic
    密集 = dense
    外侧段, 内侧段, 背段, 前段, 后段, 尖段, 尖后段, 基底段, 段, 以 =
    双侧肺炎, 双肺炎, 两肺炎 = bilateral pneumonia
    实质性, 活动性, 明确, 确切, 明显, 肺纹理, 纹理, 为著, 为主, 为甚, 散在, 多发, 少许, 少量, 原, 约, 大小, 形态 =
    斑片状, 斑片, 片状, 云絮状, 团片状, 模糊 = patchy
    密度影, 影 = opacity
    外上象限, 外上 = upper outer
    内上象限, 内上 = upper inner
    外下象限, 外下 = lower outer
    内下象限, 内下 = lower inner
    心肺 = lung
    膈肌, 膈 = diaphragm
    肋骨 = rib
    骨折 = fracture
    各 = each
    正常 = normal
    清晰, 清楚 = clear
    除了, 除 = except
    但是, 但, 然而 = but
    以外, 之外, 外 = ,
    外侧 = lateral
    和, 及, 与, 以及, 并且 = and
    或者, 或 = or
    双肺底, 两肺底, 双侧肺底, 两侧肺底 = both lower zones
    双肺尖, 两肺尖, 双侧肺尖, 两侧肺尖 = both upper zones
    双肺门周围, 两肺门周围, 双侧肺门周围 = both middle zones
    双侧肺部, 双侧肺, 两侧肺, 双肺, 两肺 = both lung
    双侧, 两侧 = bilateral
    单侧 = unilateral
    双 = both
    偏 =
    左侧, 左边, 左 = left
    右侧, 右边, 右 = right
    左上角, 左上方, 左上 = top left
    右上角, 右上方, 右上 = top right
    左下角, 左下方, 左下 = bottom left
    右下角, 右下方, 右下 = bottom right
    上方, 上部, 上侧, 上 = upper
    下方, 下部, 下侧, 下 = lower
    顶部 = top
    底部 = bottom
    中央, 中心, 正中 = center
    中间, 中部, 中 = middle
    周围, 周边, 外周 = around
    中等大小, 中等, 中型, 中号 = medium
    小型, 小的, 较小, 小 = small
    大型, 大的, 较大, 大 = large
    圆形, 圆 = circular
    椭圆形, 椭圆 = elliptical
    菜花状, 菜花样 = cauliflower shaped
    部分光滑 = partially smooth
    光滑 = smooth
    溃疡 = ulcerated
    肺部感染, 肺感染 = pulmonary infection
    新冠肺炎, 新冠感染, 肺炎 = pneumonia
    新冠 = covid
    感染区域, 感染区, 感染灶 = infected area
    感染 = infection
    磨玻璃影, 磨玻璃样影, 磨玻璃 = ground glass opacity
    实变 = consolidation
    浸润 = infiltrate
    斑片状阴影, 斑片状影, 斑片影, 片状影, 片影, 絮状影, 渗出影, 阴影 = opacity
    渗出, 炎症 = inflammation
    胸腔积液 = effusion
    胸部, 胸片, 胸 = chest
    肺野, 肺部, 肺 = lung
    上叶, 上野, 上区, 上肺野 = upper zone
    中叶, 中野, 中区, 中肺野 = middle zone
    下叶, 下野, 下区, 下肺野 = lower zone
    肺尖 = lung apex
    肺底 = lung base
    舌段, 舌叶 = lingula
    肺门周围 = perihilar
    全部, 整个, 弥漫性, 弥漫 = all
    结肠镜下, 肠镜下, 结肠镜, 肠镜 = colonoscopy
    结肠, 大肠, 肠道, 肠 = colonic
    息肉, 腺瘤 = polyp
    细胞核密度 = nuclei density
    细胞核, 核 = nuclei
    肺结核, 结核 = tuberculosis
    密度 = density
    较高, 更高, 高 = high
    分布 = distributed
    乳腺, 乳房, 乳 = breast
    超声 = ultrasound
    肿瘤 = tumor
    肿块 = mass
    结节 = nodule
    病变, 病灶, 占位 = lesion
    囊肿 = cyst
    良性 = benign
    恶性 = malignant
    癌 = cancer
    图像, 图片, 影像, 图 = image
    位于, 在 = in
    可见, 见, 显示, 有, 是 = shows
    区域, 区, 叶, 野 = zone
    钟, 个, 处, 枚, 颗, 块, 的, 呈, 形, 状, 侧, 部, 方, 均, 都, 为, 表面, 里, 内 =
    一 = one
    两, 二 = two
    三 = three
    四 = four
    五 = five
    六 = six
    七 = seven
    八 = eight
    九 = nine
    十 = ten
    """
)

"""Every word of the page, in English and Chinese. (What the service answers is English.)"""

from typing import Any

import gradio as gr


ENGLISH = {
    "intro": """# LViT: text-guided medical image segmentation

Give an image and a sentence that says what to find and where. The network that comes with this page was trained on
chest X-rays (COVID-19 infection), colonoscopy frames (polyps) and H&E slides (nuclei).

**For research only.** This is not a medical device; do not use it for diagnosis or treatment. Uploads are deleted
within two hours; nothing about a patient is read from DICOM files.""",
    "image": "Image",
    "file": "Or a DICOM, NIfTI or TIFF file",
    "slice": "Slice",
    "caption": "Caption",
    "caption_hint": "one small polyp on the top left",
    "caption_info": "What to find and where. It may be empty.",
    "builder": "Build a caption",
    "family": "Kind of finding",
    "write": "Write it",
    "append": "Add a finding",
    "no_text": "No text",
    "predict": "Write a caption from the image",
    "predicted": "What the image may show, with probabilities",
    "settings": "Model and scale",
    "model": "Checkpoint",
    "model_info": "A folder, or USER/NAME on the Hub.",
    "device": "Device",
    "scale": "Scale",
    "scale_info": "Cut slides into tiles: 176 pixels at 40x, 96 at 20x.",
    "segment": "Segment",
    "examples": "Examples",
    "overlay": "Overlay",
    "slider": "Compare",
    "heat": "Probability",
    "effect": "Effect of the text",
    "threshold": "Threshold",
    "threshold_info": "Higher values make the mask smaller.",
    "opacity": "Opacity",
    "area": "Area in pixels",
    "percent": "Area in %",
    "mm2": "Area in mm²",
    "components": "Parts",
    "diameter": "Largest diameter",
    "confidence": "Score: mean probability inside the mask",
    "use": "Use of the caption",
    "verdict": "Do caption and image agree?",
    "verdict_info": "What the checkpoint believes; it can be wrong.",
    "truth": "Compare with a true mask",
    "truth_file": "True mask",
    "download_mask": "Download mask",
    "download_overlay": "Download overlay",
    "download_json": "Download measurements",
    "download_native": "Download mask as DICOM or NIfTI",
    "image_tab": "One image",
    "volume_tab": "A volume",
    "many_tab": "Many images",
    "stop": "Stop",
    "volume_file": "NIfTI, DICOM or zip of a DICOM series",
    "volume_size": "Slices × rows × columns",
    "volume_caption_info": "One for all slices. It may be empty.",
    "segment_volume": "Segment the volume",
    "volume_slice": "Slice with its mask",
    "voxels": "Voxels",
    "ml": "Volume in ml",
    "slices_found": "Slices with findings",
    "largest_slice": "Slice with the largest area",
    "largest_diameter": "Largest diameter there",
    "montage": "Montage: choose a slice",
    "download_volume": "Download mask volume",
    "many_files": "Images or zips; CSV for captions",
    "many_caption_info": "For images that no CSV file with the columns image and text names. It may be empty.",
    "segment_many": "Segment the images",
    "table": "Measurements",
    "problem": "Problem",
    "overlays": "Overlays",
    "download_zip": "Download masks and table",
}

CHINESE = {
    "intro": """# LViT:文本引导的医学图像分割

给出一张图像和一句话,说明要找什么、在哪里。本页自带的网络在胸部 X 光片(新冠肺炎感染)、结肠镜图像(息肉)和 H&E 切片(细胞核)上训练。

**仅供研究使用。** 这不是医疗器械,请勿用于诊断或治疗。上传的文件会在两小时内删除;不会读取 DICOM 文件中的患者信息。""",
    "image": "图像",
    "file": "或 DICOM、NIfTI、TIFF 文件",
    "slice": "切片",
    "caption": "描述",
    "caption_hint": "one small polyp on the top left",
    "caption_info": "要找什么,在哪里(用英文)。可以留空。",
    "builder": "生成描述",
    "family": "病变种类",
    "write": "写入",
    "append": "再加一处",
    "no_text": "不用文本",
    "predict": "根据图像生成描述",
    "predicted": "图像可能显示的内容及其概率",
    "settings": "模型与尺度",
    "model": "模型权重",
    "model_info": "文件夹,或 Hub 上的 USER/NAME。",
    "device": "设备",
    "scale": "尺度",
    "scale_info": "把切片图像切成小块:40 倍用 176 像素,20 倍用 96 像素。",
    "segment": "分割",
    "examples": "示例",
    "overlay": "叠加",
    "slider": "对比",
    "heat": "概率",
    "effect": "文本的作用",
    "threshold": "阈值",
    "threshold_info": "值越大,掩膜越小。",
    "opacity": "不透明度",
    "area": "面积(像素)",
    "percent": "面积(%)",
    "mm2": "面积(平方毫米)",
    "components": "连通区域数",
    "diameter": "最大直径",
    "confidence": "得分:掩膜内的平均概率",
    "use": "文本的使用",
    "verdict": "描述与图像是否一致?",
    "verdict_info": "这是模型的判断,可能有误。",
    "truth": "与真实掩膜比较",
    "truth_file": "真实掩膜",
    "download_mask": "下载掩膜",
    "download_overlay": "下载叠加图",
    "download_json": "下载测量值",
    "download_native": "下载 DICOM 或 NIfTI 掩膜",
    "image_tab": "单张图像",
    "volume_tab": "体积数据",
    "many_tab": "多张图像",
    "stop": "停止",
    "volume_file": "NIfTI、DICOM 或 DICOM 序列的 zip",
    "volume_size": "切片 × 行 × 列",
    "volume_caption_info": "用于所有切片(用英文)。可以留空。",
    "segment_volume": "分割整个体积",
    "volume_slice": "切片及其掩膜",
    "voxels": "体素数",
    "ml": "体积(毫升)",
    "slices_found": "有病变的切片",
    "largest_slice": "面积最大的切片",
    "largest_diameter": "该切片上的最大直径",
    "montage": "拼图:选择切片",
    "download_volume": "下载体积掩膜",
    "many_files": "图像或 zip;CSV 提供描述",
    "many_caption_info": "用于 CSV 文件(image 和 text 两列)没有提到的图像(用英文)。可以留空。",
    "segment_many": "分割这些图像",
    "table": "测量值",
    "problem": "问题",
    "overlays": "叠加图",
    "download_zip": "下载掩膜和表格",
}

# Gradio's own words have keys too, which must not be hidden.
PREFIX = "lvit_"
I18N = gr.I18n(
    **{
        language: {PREFIX + key: word for key, word in words.items()}
        for language, words in (("en", ENGLISH), ("zh", CHINESE), ("zh-CN", CHINESE))
    }
)


def translated(key: str) -> Any:
    """The word of a key, in the visitor's language. (Gradio takes it where it says `str`.)"""
    return I18N(PREFIX + key)


def translate(key: str, request: gr.Request) -> str:
    """The word of a key in the language of a request, for what gradio does not translate."""
    chinese = request.headers.get("accept-language", "").lower().startswith("zh")
    return (CHINESE if chinese else ENGLISH)[key]

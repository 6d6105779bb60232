"""Small files in exactly the forms in which the authors of data sets publish them."""

import json

from PIL import Image

SIDE = 16  # of pictures as the tasks see them


def vqa_files(folder, subset, asked, answered=True):
    """VQAv2: questions, and annotations in another order; `asked` are (question_id, image_id, question, answers)."""
    about = {"info": {"year": 2017, "version": "2.0"}, "license": {"name": "CC"}, "data_subtype": subset}
    questions = [{"image_id": image, "question": text, "question_id": one} for one, image, text, _ in asked]
    annotations = [
        {
            "question_type": "what is", "multiple_choice_answer": answers[0], "answer_type": "other",
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                for number, answer in enumerate(answers, start=1)
            ],
            "image_id": image, "question_id": one,
        }
        for one, image, _, answers in reversed(asked)
    ]  # fmt: skip
    files = {f"v2_OpenEnded_mscoco_{subset}_questions": {**about, "task_type": "Open-Ended", "questions": questions}}
    if answered:
        files[f"v2_mscoco_{subset}_annotations"] = {**about, "annotations": annotations, "data_type": "mscoco"}
    return write(folder, files)


def karpathy_file(folder, dataset, images):
    """Karpathy's; `images` are (filename, split, captions)."""
    numbers = iter(range(1000))
    entries = []
    for number, (name, split, captions) in enumerate(images):
        sentences = [
            {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": next(numbers)} for text in captions
        ]
        entry = {"filename": name, "imgid": number, "split": split, "sentences": sentences}
        if dataset == "coco":
            entry |= {"filepath": name.split("_")[1], "cocoid": int(name[-10:-4])}
        entries.append({"sentids": [one["sentid"] for one in sentences], **entry})
    return write(folder, {f"dataset_{dataset}": {"images": entries, "dataset": dataset}})


def coco_file(folder, subset, images):
    """COCO's captions, not in the order of the pictures; `images` are (file_name, id, captions)."""
    listed = [
        {"license": 3, "file_name": name, "coco_url": "http://x", "height": 4, "width": 4, "id": one}
        for name, one, _ in images
    ]
    said = [(text, one) for place in range(5) for _, one, texts in images for text in texts[place : place + 1]]
    annotations = [{"image_id": one, "id": number, "caption": text} for number, (text, one) in enumerate(said)]
    content = {"info": {"description": "COCO"}, "images": listed, "licenses": [{"id": 1}], "annotations": annotations}
    return write(folder, {f"captions_{subset}": content})


def flickr_files(folder, images, lists):
    """Flickr8k's; `images` are (name, captions), `lists` names by the middle of the list's file name."""
    tokens = [f"{name}#{place}\t{text}" for name, captions in images for place, text in enumerate(captions)]
    texts = {"Flickr8k.token": tokens, **{f"Flickr_8k.{split}Images": names for split, names in lists.items()}}
    for name, lines in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return [folder / f"{name}.txt" for name in texts]


def nlvr2_file(folder, name, statements):
    """NLVR2's lines; `statements` are (identifier, directory or None, sentence, label)."""
    lines = []
    for identifier, directory, sentence, label in statements:
        entry = {
            "validation": {"1": label}, "sentence": sentence, "left_url": "http://x/l.jpg", "writer": "7",
            "label": label, "right_url": "http://x/r.jpg", "synset": "dog", "query": "dog1", "identifier": identifier,
            "extra_validations": {},
        }  # fmt: skip
        lines.append(json.dumps(entry | ({} if directory is None else {"directory": directory})))
    (folder / f"{name}.json").write_text("\n".join(lines) + "\n")
    return [folder / f"{name}.json"]


def write(folder, files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return [folder / f"{name}.json" for name in files]


def vizwiz_question(split, number, question, answers):
    """One of VizWiz's; its test set has pictures and questions alone."""
    asked = {"image": f"VizWiz_{split}_{number:08d}.jpg", "question": question}
    given = [{"answer_confidence": "yes", "answer": answer} for answer in answers or ()]
    return asked if answers is None else {"answerable": 1, **asked, "answer_type": "other", "answers": given}


def genome_question(number, image, question, answer):
    """One of Visual Genome's questions."""
    objects = {"a_objects": [], "q_objects": []}
    return {**objects, "question": question, "image_id": image, "qa_id": number, "answer": answer}


def paint(folder, names):
    """Pictures of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30)).save(folder / name)

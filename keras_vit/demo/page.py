"""The page: a picture goes in, what each run says of it comes out."""

from html import escape
from pathlib import Path

import gradio as gr

from keras_vit.demo.answers import LAST, PREDICTED, TOP, Viewer
from keras_vit.explain.methods import METHODS, OF_A_CLASS

WAITING = 200  # visitors who may wait for an answer
SWEEP_SECONDS, KEPT_SECONDS = 30, 600  # how often files are deleted, and at which age
HINT = "Drop a picture, paste one, choose a file or use the camera."
GONE = "The picture was deleted: pictures are kept for ten minutes. Choose it again."
CSS = """
footer { display: none !important; }
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
#message p, .notes p { margin: 0 0 .3em; }
#message .problem { color: #b3261e; font-weight: 600; }
.dark #message .problem { color: #ffb4ab; }
.notes, .notes p { font-size: .9rem; }
.run-name h2 { margin: 0; font-size: 1.15rem; overflow-wrap: anywhere; }
#title h1 { margin: .2em 0; font-size: 1.5rem; overflow-wrap: anywhere; }
.html-container { padding: 0 !important; }
.classes h2, .classes dt { min-width: 0; overflow-wrap: anywhere; }
.classes dd { flex: none; padding-left: .5em; }
#picture img, .seen img { width: 100%; object-fit: contain; }
"""


def build(viewers: list[Viewer], title: str, examples: list[Path], notes: list[str]) -> gr.Blocks:
    """The page of one run or of several side by side.

    Args:
        viewers: A `Viewer` a run.
        title: Of the page.
        examples: Picture files to choose from, in the folder of `workspace`.
        notes: Lines below the title.
    """
    depth = max(viewer.depth for viewer in viewers)
    names = [*dict.fromkeys(name for viewer in viewers for name in viewer.class_names)]
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS)) as page:
        gr.HTML(f"<h1>{escape(title)}</h1>{lines(notes)}", elem_id="title", padding=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = picture_field()
                message = gr.HTML(lines([HINT]), elem_id="message", padding=False)
                method = gr.Dropdown([*METHODS], value=METHODS[0], label="Where it looks, by", elem_id="method")
                blocks = [("the last block", LAST), *((f"block {index}", index) for index in range(depth))]
                block = gr.Dropdown(blocks, value=LAST, label="Attention of", elem_id="block")
                classes = [("the predicted class", PREDICTED), *((name, name) for name in names if name != PREDICTED)]
                explained = gr.Dropdown(classes, value=PREDICTED, label="What speaks for", visible=False, elem_id="class")
                if examples:
                    offer(examples, picture)
            shown = [result("" if viewer.name == title else viewer.name) for viewer in viewers]
        choices = [picture, method, block, explained]
        gr.on(
            [each.change for each in choices],
            lambda *chosen: answers(viewers, *chosen),
            choices,
            [message, *(part for parts in shown for part in parts)],
            concurrency_limit=1,
            trigger_mode="always_last",
            show_progress="minimal",
            api_name="classify",
        )
        shows = [block, explained]
        method.change(fitting, [method], shows, queue=False, show_progress="hidden", api_visibility="private")
    return page.queue(max_size=WAITING)


def picture_field():
    """The field for a picture. It gives the path of the file as it was uploaded: Gradio itself would decode and convert it.

    No event may return `gr.update` for this field: Gradio would go on with a new field, without these checks.
    """
    camera = gr.WebcamOptions(mirror=False)
    field = gr.Image(type="filepath", label="Picture", webcam_options=camera, buttons=[], height=300, elem_id="picture")
    folder = Path(field.GRADIO_CACHE).resolve()

    async def own(path):
        """A file that a visitor has uploaded, never another one of this machine or an address to load from."""
        path = Path(path).resolve()
        if folder not in path.parents:
            raise gr.Error("picture: received another file; allowed: an uploaded one", print_exception=False)
        if not path.is_file():
            raise gr.Error(GONE, print_exception=False)
        field.temp_files.add(str(path))
        return str(path)

    field.async_move_resource_to_block_cache = own
    field.preprocess = lambda payload: payload and payload.path
    return field


def offer(examples, picture):
    """Pictures to click on."""
    picture.keep_in_cache.update(str(path.resolve()) for path in examples)
    pictures = gr.Dataset(
        components=[gr.Image(type="filepath", render=False)],
        samples=[[str(path)] for path in examples],
        label="Test images", type="index", samples_per_page=len(examples), elem_id="examples",
    )  # fmt: skip
    pictures.click(
        lambda index: str(examples[index]), pictures, picture, queue=False, show_progress="hidden", api_visibility="private"
    )


def result(name):
    """What is shown of one run: its name, its classes, its picture and its notes."""
    with gr.Column(scale=3, min_width=300):
        if name:
            gr.HTML(f"<h2>{escape(name)}</h2>", elem_classes="run-name", padding=False)
        classes = gr.Label(num_top_classes=TOP, label="Likeliest classes", elem_classes="classes")
        seen = gr.Image(
            label="Where it looks: black least, yellow most",
            interactive=False, format="png", buttons=["download", "fullscreen"], elem_classes="seen",
        )  # fmt: skip
        notes = gr.HTML("", elem_classes="notes", padding=False)
    return classes, seen, notes


def answers(viewers, picture, method, block, explained):
    """What each viewer says of a picture, as the values of the page's fields: a message, and three for each run."""
    nothing = [None, None, ""] * len(viewers)
    if picture is None:
        return [lines([HINT]), *nothing]
    try:
        found = [viewer.answer(picture, method, block, explained) for viewer in viewers]
    except ValueError as error:
        return [f'<p class="problem" role="alert">{escape(str(error))}</p>', *nothing]
    parts = []
    for each in found:
        took = f"{each.predict_ms:.1f} ms for the classes, {each.explain_ms:.1f} ms for the picture"
        parts += [each.classes, each.picture, lines([took, *each.notes])]
    return ["", *parts]


def fitting(method):
    """Shows the settings that a method knows."""
    return gr.update(visible=method == METHODS[0]), gr.update(visible=method in OF_A_CLASS)


def lines(texts):
    """Texts as HTML, a paragraph each."""
    return "".join(f"<p>{escape(text)}</p>" for text in texts)

"""Mini-WebVision: the first 50 classes of WebVision 1.0's Google images; 65,944 training and 2,500 test images."""

from __future__ import annotations

from pathlib import Path

from noisebench.data import ImageData
from noisebench.datasets.webvision import prepare as prepare
from noisebench.datasets.webvision import read

NUM_CLASSES = 50
SIZE = {"train": 65_944, "test": 2_500}
NOISE = "labels are the classes of the web queries, checked by nobody; clean training labels unknown"
FILES = {
    "webvision/google_resized_256.tar": "",
    "webvision/val_images_256.tar": "",
    "webvision/info.tar": "",
}
LICENCE = "non-commercial research and education; the images belong to their owners"
SOURCE = (
    "https://data.vision.ee.ethz.ch/cvl/webvision/dataset2017.html (Li et al., 2017; mini: Jiang et al., ICML 2018)"
)


def load(root: Path | None, download: bool = False) -> ImageData:
    """Encoded images, from the folder of dataset webvision; Flickr's are not needed.

    The test set is WebVision's validation set of these classes, and the further test "ilsvrc12" that of ILSVRC12.

    Raises:
        UserError: no root, it is to be downloaded, a list is wrong or of another length, or an image is missing.
    """
    return read(root, NUM_CLASSES, {"train_filelist_google.txt": "google"}, SIZE)

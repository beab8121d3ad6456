"""Readers of official layouts and of a user's own files, by the word that a dataset's YAML calls them by."""

from bench.data.readers import arrays, cars, cifar, cub, image_folder, lists, omniglot, tiny_imagenet
from bench.data.readers.reader import Reader

LAYOUTS = {
    "arrays": Reader(arrays.VERSION, arrays.read, arrays.why_not, arrays.sources),
    "cars": Reader(cars.VERSION, cars.read, cars.why_not, cars.sources),
    "cifar_binary": Reader(cifar.VERSION, cifar.read, cifar.why_not, cifar.sources),
    "cub": Reader(cub.VERSION, cub.read, cub.why_not, cub.sources),
    "image_folder": Reader(image_folder.VERSION, image_folder.read, image_folder.why_not, image_folder.sources),
    "lists": Reader(lists.VERSION, lists.read, lists.why_not, lists.sources),
    "omniglot": Reader(omniglot.VERSION, omniglot.read, omniglot.why_not, omniglot.sources),
    "tiny_imagenet": Reader(tiny_imagenet.VERSION, tiny_imagenet.read, tiny_imagenet.why_not, tiny_imagenet.sources),
}

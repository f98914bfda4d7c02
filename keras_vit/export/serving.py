"""Pictures read as in training, by TensorFlow's operations, for the signatures of a SavedModel.

Equals `keras_vit.data.decode.read_image` to within a few grey levels, since decoders and resamplers differ.

Shapes: B batch, h x w a picture, H x W the model's image, C channels.
"""

import tensorflow as tf

from keras_vit.data.decode import MAX_PIXELS

ORIENTATION = 0x0112  # the tag of EXIF
HEAD = 1 << 16  # bytes at the start of a file; by its own limit EXIF lies within them


def cover(images: tf.Tensor, size: tuple[int, int], center_crop: float = 1.0) -> tf.Tensor:
    """Resizes the middle `center_crop` of pictures (B, h, w, C) to cover H x W, bicubic and antialiased, and crops the centre.

    Returns:
        float32 (B, H, W, C), whole numbers from 0 to 255.
    """
    sides, target = tf.cast(tf.shape(images)[1:3], tf.float32), tf.constant(size, tf.float32)
    scale = tf.reduce_max(target / sides) / center_crop
    images = tf.raw_ops.ScaleAndTranslate(
        images=tf.cast(images, tf.float32),
        size=size,
        scale=tf.stack([scale, scale]),
        translation=(target - sides * scale) / 2,
        kernel_type="keyscubic",
        antialias=True,
    )
    return tf.round(tf.clip_by_value(images, 0, 255))


def decode(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes a JPEG or PNG file, a string, to a picture (h, w, C) with C = 1 or 3, values from 0 to 255.

    A JPEG is turned upright by its EXIF orientation; transparency becomes white. The header gives the size: a file with more than
    `MAX_PIXELS` is refused before any pixel is decoded.
    """
    is_jpeg = tf.io.is_jpeg(encoded)
    is_png = tf.equal(tf.strings.substr(encoded, 0, 8), b"\x89PNG\r\n\x1a\n") & (tf.strings.length(encoded) >= 24)
    with tf.control_dependencies([tf.debugging.Assert(is_jpeg | is_png, ["allowed: encoded JPEG or PNG files"])]):
        pixels = tf.cond(is_jpeg, lambda: jpeg_pixels(encoded), lambda: png_pixels(encoded))
    small = tf.debugging.Assert(pixels <= MAX_PIXELS, [f"allowed: up to {MAX_PIXELS:,} pixels; received", pixels])
    with tf.control_dependencies([small]):
        image = tf.cond(is_jpeg, lambda: from_jpeg(encoded), lambda: from_png(encoded))
    if channels == 1:
        image = tf.round(tf.tensordot(image, tf.constant([[0.299], [0.587], [0.114]]), 1))
    return image


def jpeg_pixels(encoded):
    return tf.reduce_prod(tf.cast(tf.image.extract_jpeg_shape(encoded)[:2], tf.int64))


def png_pixels(encoded):
    width, height = (tf.minimum(number(octets(encoded, start, 4), False), 2**31 - 1) for start in (16, 20))  # the limit of PNG
    return width * height


def from_jpeg(encoded):
    image = tf.image.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.cast(upright(image, orientation(encoded)), tf.float32)


def from_png(encoded):
    image = tf.cast(tf.image.decode_png(encoded, channels=4), tf.float32)
    alpha = image[..., 3:] / 255
    return tf.round(image[..., :3] * alpha + 255 * (1 - alpha))


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns and mirrors a picture (h, w, C) by its EXIF orientation, 1 to 8."""

    def among(*values):
        return tf.reduce_any(tf.equal(orientation, values))

    image = tf.transpose(image, tf.where(among(5, 6, 7, 8), [1, 0, 2], [0, 1, 2]))
    image = tf.where(among(2, 3, 6, 7), tf.reverse(image, [1]), image)
    image = tf.where(among(3, 4, 7, 8), tf.reverse(image, [0]), image)
    return tf.ensure_shape(image, (None, None, 3))


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of a JPEG file; 1, upright, if it has none or a damaged one.

    EXIF is a TIFF file after a marker: the byte order, then the offset of the tag table. The table has a count, then 12 bytes for
    each tag.
    """
    parts = tf.strings.split(tf.strings.substr(encoded, 0, HEAD), b"Exif\0\0", maxsplit=1)

    def read():
        tiff = parts[1]
        little = tf.equal(tf.strings.substr(tiff, 0, 1), b"I")
        start = tf.cast(tf.minimum(number(octets(tiff, 4, 4), little), HEAD), tf.int32)
        count = tf.cast(number(octets(tiff, start, 2), little), tf.int32)
        entries = tf.reshape(octets(tiff, start + 2, 12 * tf.minimum(count, 1000)), (-1, 12))
        found = tf.boolean_mask(number(entries[:, 8:10], little), tf.equal(number(entries[:, :2], little), ORIENTATION))
        value = tf.concat([found, [1]], axis=0)[0]
        return tf.where((value >= 1) & (value <= 8), value, 1)

    return tf.cond(tf.size(parts) > 1, read, lambda: tf.constant(1, tf.int64))


def octets(encoded, start, count):
    """Bytes of a string as int64; zeros after its end."""
    values = tf.cast(tf.concat([tf.io.decode_raw(encoded, tf.uint8), [0]], axis=0), tf.int64)
    return tf.gather(values, tf.minimum(start + tf.range(count), tf.size(values) - 1))


def number(values, little):
    """Bytes (..., n) as numbers (...); the most significant byte comes first unless `little`."""
    values = tf.where(little, tf.reverse(values, [-1]), values)
    return tf.reduce_sum(values * [1 << 8 * power for power in reversed(range(values.shape[-1]))], axis=-1)

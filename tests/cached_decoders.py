"""Small decoders with a cache, in the forms that exporters write: 12 tokens, 2 heads of 4."""

import onnx
from sample_models import model_from

_HEAD = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
"""

_WEIGHTS = """
float[12, 8] table, float[48, 8] places, float[8, 8] wq, float[8, 8] wk, float[8, 8] wv,
float[8, 12] head, int64[4] by_head = {0, 0, 2, 4}, int64[3] by_token = {0, 0, 8},
int64[1] first = {0}, int64[1] second = {1}, int64[1] third = {2}, int64[2] rows_axes = {1, 2},
int64 zero = {0}, int64 one = {1}, float low = {-10000}, float none = {0}, float half = {0.5}
"""

_QKV = """
    e = Gather (table, input_ids)
    p = Gather (places, position_ids)
    x = Add (e, p)
    q3 = MatMul (x, wq)
    k3 = MatMul (x, wk)
    v3 = MatMul (x, wv)
    q4 = Reshape (q3, by_head)
    k4 = Reshape (k3, by_head)
    v4 = Reshape (v3, by_head)
    q = Transpose <perm = [0, 2, 1, 3]> (q4)
    k = Transpose <perm = [0, 2, 1, 3]> (k4)
    v = Transpose <perm = [0, 2, 1, 3]> (v4)
"""

_ATTEND = """
    keys = Transpose <perm = [0, 1, 3, 2]> (present_0_key)
    raw = MatMul (q, keys)
    scaled = Mul (raw, half)
    seen = Cast <to = 9> (attention_mask)
    counted = Unsqueeze (seen, rows_axes)
    length = Shape <start = 2, end = 3> (present_0_key)
    count = Squeeze (length, first)
    index = Range (zero, count, one)
    place = Unsqueeze (position_ids, rows_axes_of_positions)
    before = LessOrEqual (index, place)
    allowed = And (counted, before)
    bias = Where (allowed, none, low)
    scores = Add (scaled, bias)
    weights = Softmax <axis = -1> (scores)
    mixed = MatMul (weights, present_0_value)
    back = Transpose <perm = [0, 2, 1, 3]> (mixed)
    out = Reshape (back, by_token)
    y = Add (x, out)
"""

_LOGITS = """
    logits = MatMul (y, head)
"""

TRANSFORMERS = (
    _HEAD
    + """
decoder (int64[s0, s1] input_ids, int64[s2, s3] attention_mask, int64[s0, s1] position_ids,
 float[s0, 2, s4, 4] past_key_values_0_key, float[s0, 2, s4, 4] past_key_values_0_value)
=> (float[s0, s1, 12] logits, float[s0, 2, s5, 4] present_0_key,
    float[s0, 2, s5, 4] present_0_value)
<int64[2] rows_axes_of_positions = {1, 3},
"""
    + _WEIGHTS
    + "> {"
    + _QKV
    + """
    present_0_key = Concat <axis = 2> (past_key_values_0_key, k)
    present_0_value = Concat <axis = 2> (past_key_values_0_value, v)
"""
    + _ATTEND
    + _LOGITS
    + "}"
)
"""An export of transformers: symbols without meaning, the mask's its own."""

MERGED = TRANSFORMERS.replace(
    "float[s0, 2, s4, 4] past_key_values_0_value)",
    "float[s0, 2, s4, 4] past_key_values_0_value, bool[1] use_cache_branch)",
)
for _part, _new in (("key", "k"), ("value", "v")):
    MERGED = MERGED.replace(
        f"present_0_{_part} = Concat <axis = 2> (past_key_values_0_{_part}, {_new})",
        f"""present_0_{_part} = If (use_cache_branch) <
        then_branch = then_{_part} () => (float[s0, 2, s5, 4] t_{_part}) {{
            t_{_part} = Concat <axis = 2> (past_key_values_0_{_part}, {_new})
        }},
        else_branch = else_{_part} () => (float[s0, 2, s5, 4] e_{_part}) {{
            e_{_part} = Identity ({_new})
        }}
    >""",
    )
"""A merged decoder of Optimum: a flag says whether the cache is read."""

BUFFER = (
    _HEAD
    + """
decoder (int64[1, tokens] input_ids, int64[1, 16] attention_mask, int64[tokens] cache_position,
 float[1, 2, 16, 4] past_key_values_0_key, float[1, 2, 16, 4] past_key_values_0_value)
=> (float[1, tokens, 12] logits, float[1, 2, 16, 4] present_0_key,
    float[1, 2, 16, 4] present_0_value)
<int64[2] rows_axes_of_positions = {1, 3}, int64[4] along = {1, 1, -1, 1},
"""
    + _WEIGHTS
    + "> { position_ids = Unsqueeze (cache_position, first)"
    + _QKV
    + """
    column = Reshape (cache_position, along)
    like = Shape (k)
    where = Expand (column, like)
    present_0_key = ScatterElements <axis = 2> (past_key_values_0_key, where, k)
    present_0_value = ScatterElements <axis = 2> (past_key_values_0_value, where, v)
"""
    + _ATTEND
    + _LOGITS
    + "}"
)
"""A cache of fixed length that is written in place."""

GENAI = (
    _HEAD
    + """
decoder (int64[batch_size, sequence_length] input_ids,
 int64[batch_size, total_sequence_length] attention_mask,
 float[batch_size, 1, past_sequence_length, 16] past_key_values_0_key,
 float[batch_size, 1, past_sequence_length, 16] past_key_values_0_value)
=> (float[batch_size, sequence_length, 12] logits,
    float[batch_size, 1, total_sequence_length, 16] present_0_key,
    float[batch_size, 1, total_sequence_length, 16] present_0_value)
<float[12, 8] table, float[8, 32] wq, float[8, 16] wk, float[8, 16] wv, float[32, 12] head,
 int64[1] second = {1}, int64[1] one = {1}, float[48, 8] cosines, float[48, 8] sines>
{
    x = Gather (table, input_ids)
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    counted = ReduceSum <keepdims = 0> (attention_mask, second)
    last = Sub (counted, one)
    seqlens_k = Cast <to = 6> (last)
    size = Shape (attention_mask)
    length = Gather (size, second)
    total = Cast <to = 6> (length)
    out, present_0_key, present_0_value = com.microsoft.GroupQueryAttention
      <num_heads = 2, kv_num_heads = 1, do_rotary = 1>
      (q, k, v, past_key_values_0_key, past_key_values_0_value, seqlens_k, total, cosines, sines)
    logits = MatMul (out, head)
}
"""
)
"""A model of onnxruntime-genai's builder: GroupQueryAttention, lengths computed from the mask."""

CONVOLUTION = (
    _HEAD
    + """
decoder (int64[batch, sequence] input_ids, float[batch, 8, 3] past_conv_0)
=> (float[batch, sequence, 12] logits, float[batch, 8, 3] present_conv_0)
<float[12, 8] table, float[8, 1, 4] kernel, float[8, 12] head, int64[1] start = {-3},
 int64[1] end = {1000}, int64[1] axis = {2}>
{
    x = Gather (table, input_ids)
    t = Transpose <perm = [0, 2, 1]> (x)
    all = Concat <axis = 2> (past_conv_0, t)
    present_conv_0 = Slice (all, start, end, axis)
    c = Conv <group = 8> (all, kernel)
    y = Transpose <perm = [0, 2, 1]> (c)
    logits = MatMul (y, head)
}
"""
)
"""A layer of convolutions, whose cache does not grow."""

CROSS = (
    _HEAD
    + """
decoder (int64[batch, sequence] input_ids, float[batch, encoder_length, 8] encoder_hidden_states,
 float[batch, past, 8] past_key_values_0_decoder_key,
 float[batch, encoder_length_out, 8] past_key_values_0_encoder_key, bool[1] use_cache_branch)
=> (float[batch, sequence, 12] logits, float[batch, total, 8] present_0_decoder_key,
    float[batch, encoder_out, 8] present_0_encoder_key)
<float[12, 8] table, float[8, 8] wk, float[8, 8] wc, float[8, 12] head, int64[1] second = {1}>
{
    x = Gather (table, input_ids)
    k = MatMul (x, wk)
    present_0_decoder_key = Concat <axis = 1> (past_key_values_0_decoder_key, k)
    own = ReduceMean <keepdims = 1> (present_0_decoder_key, second)
    crossed = If (use_cache_branch) <
        then_branch = read () => (float[batch, encoder_out, 8] t) {
            t = Identity (past_key_values_0_encoder_key)
        },
        else_branch = made () => (float[batch, encoder_out, 8] e) {
            e = MatMul (encoder_hidden_states, wc)
        }
    >
    present_0_encoder_key = Identity (crossed)
    other = ReduceMax <keepdims = 1> (crossed, second)
    with_own = Add (x, own)
    y = Add (with_own, other)
    logits = MatMul (y, head)
}
"""
)
"""Whisper's form: a cache of the encoder's states that the first run fills. Later tokens see the
mean of earlier ones, so that a prefill is no chain of steps.
"""

FORMS = {
    "transformers": TRANSFORMERS,
    "merged": MERGED,
    "buffer": BUFFER,
    "genai": GENAI,
    "convolution": CONVOLUTION,
    "cross": CROSS,
}


def decoder_model(text: str, seed: int = 0) -> onnx.ModelProto:
    """The model of a text, with the dots in its names that the text cannot have."""
    proto = model_from(text, seed)
    _rename(proto.graph)
    return proto


def _rename(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = dotted(value.name)
    for node in graph.node:
        node.input[:] = [dotted(name) for name in node.input]
        node.output[:] = [dotted(name) for name in node.output]
        for attribute in node.attribute:
            _rename(attribute.g)


def dotted(name: str) -> str:
    """The name as exporters write it: `past_key_values.0.key`."""
    for prefix in ("past_key_values", "present", "past_conv", "present_conv"):
        if name.startswith(f"{prefix}_0"):
            rest = name.removeprefix(f"{prefix}_0").replace("_", ".")
            return f"{prefix}.0{rest}"
    return name

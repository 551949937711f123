"""By op family: a model as text, and which slots of it must go together (letters; a dot stays)."""

MODELS = {
    "lstm": (
        """
        g (float[T, N, 3] x) => (float[T, N, 2] y)
        <float[3, 4] a, float[1, 12, 4] w, float[1, 12, 3] r, float[1, 24] b, float[1, 9] p,
            float[3, 2] c,
         int64[2] s = {0, 2}, int64[1] one = {1}> {
            u = MatMul (x, a)
            h = LSTM <hidden_size = 3> (u, w, r, b, , , , p)
            k = Squeeze (h, one)
            y = MatMul (k, c)
        }""",
        {
            "a[1]": "abcd",
            "w[2]": "abcd",
            "w[1]": "efg" * 4,
            "r[1]": "efg" * 4,
            "r[2]": "efg",
            "b[1]": "efg" * 8,
            "p[1]": "efg" * 3,
            "c[0]": "efg",
            "w[0]": ".",
        },
    ),
    "two directions of a gru under another layer": (
        """
        g (float[5, N, 3] x) => (float[5, N, 2] y)
        <float[2, 6, 3] w, float[2, 6, 2] r, float[2, 12] b, float[2, 9, 4] w2, float[2, 9,
            3] r2, float[6, 2] c,
         int64[3] s = {0, 0, -1}> {
            h = GRU <hidden_size = 2, direction = "bidirectional", linear_before_reset = 1> (x,
                w, r, b)
            t = Transpose <perm = [0, 2, 1, 3]> (h)
            k = Reshape (t, s)
            h2 = GRU <hidden_size = 3, direction = "bidirectional"> (k, w2, r2)
            t2 = Transpose <perm = [0, 2, 1, 3]> (h2)
            k2 = Reshape (t2, s)
            y = MatMul (k2, c)
        }""",
        {
            "r[2]": "ab",
            "w[1]": "ababab",
            "b[1]": "ab" * 6,
            "w2[2]": "abab",
            "r2[2]": "cde",
            "c[0]": "cdecde",
            "w[2]": "...",
        },
    ),
    "last states of an rnn": (
        """
        g (float[5, N, 3] x, float[N, 3] i) => (float[N, 2] y)
        <float[1, 4, 3] w, float[1, 4, 4] r, float[3, 4] a, float[4, 2] c, int64[1] zero = {0}> {
            j = MatMul (i, a)
            k = Unsqueeze (j, zero)
            h, l = RNN <hidden_size = 4> (x, w, r, , , k)
            m = Squeeze (l, zero)
            y = MatMul (m, c)
        }""",
        {
            "r[2]": "abcd",
            "r[1]": "abcd",
            "w[1]": "abcd",
            "a[1]": "abcd",
            "c[0]": "abcd",
        },
    ),
    "both states of an lstm": (
        """
        g (float[5, N, 3] x) => (float[1, N, 2] y)
        <float[1, 16, 3] w, float[1, 16, 4] r, float[8, 2] c> {
            h, l, m = LSTM <hidden_size = 4> (x, w, r)
            k = Concat <axis = 2> (l, m)
            y = MatMul (k, c)
        }""",
        {"r[2]": "abcd", "c[0]": "abcdabcd"},
    ),
    "einsum": (
        """
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 4] a, float[4, 2] b> {
            h = Einsum <equation = "...i,ij->...j"> (x, a)
            y = Einsum <equation = "nj, jk"> (h, b)
        }""",
        {"a[0]": "...", "a[1]": "abcd", "b[0]": "abcd", "b[1]": ".."},
    ),
    "heads through einsum": (
        """
        g (float[N, 5, 3] x) => (float[N, 5, 3] y)
        <float[3, 2, 4] q, float[3, 2, 4] k, float[3, 2, 4] v, float[2, 4, 3] o> {
            a = Einsum <equation = "nti,ihd->nhtd"> (x, q)
            b = Einsum <equation = "nti,ihd->nhtd"> (x, k)
            c = Einsum <equation = "nti,ihd->nhtd"> (x, v)
            s = Einsum <equation = "nhtd,nhsd->nhts"> (a, b)
            p = Softmax (s)
            d = Einsum <equation = "nhts,nhsd->nhtd"> (p, c)
            y = Einsum <equation = "nhtd,hdi->nti"> (d, o)
        }""",
        {
            "q[1]": "ab",
            "k[1]": "ab",
            "v[1]": "ab",
            "o[0]": "ab",
            "q[2]": "cdef",
            "k[2]": "cdef",
            "v[2]": "ghij",
            "o[1]": "ghij",
        },
    ),
    "grouped queries": (
        """
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[N, 5, 3] x) => (float[N, 5, 3] y)
        <float[3, 8] q, float[3, 4] k, float[3, 6] v, float[12, 3] o> {
            a = MatMul (x, q)
            b = MatMul (x, k)
            c = MatMul (x, v)
            d = Attention <q_num_heads = 4, kv_num_heads = 2> (a, b, c)
            y = MatMul (d, o)
        }""",
        {"q[1]": "aaaabbbb", "k[1]": "aabb", "v[1]": "aaabbb", "o[0]": "aaaaaabbbbbb"},
    ),
    "attention with axes of heads": (
        """
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[N, 5, 3] x) => (float[N, 5, 3] y)
        <float[3, 24] q, float[8, 3] o, float[1, 4, 5, 5] m, int64[5] s = {0, 0, 3, 4, 2},
            int64[3] t = {0, 0, -1},
         int64[1] two = {2}> {
            a = MatMul (x, q)
            b = Reshape (a, s)
            c = Transpose <perm = [0, 3, 2, 1, 4]> (b)
            d, e, f = Split <axis = 2, num_outputs = 3> (c)
            i = Squeeze (d, two)
            j = Squeeze (e, two)
            k = Squeeze (f, two)
            l = Attention (i, j, k, m)
            n = Transpose <perm = [0, 2, 1, 3]> (l)
            z = Reshape (n, t)
            y = MatMul (z, o)
        }""",
        {"q[1]": "aabbccdd" * 3, "o[0]": "aabbccdd", "m[1]": "abcd"},
    ),
    "rotary": (
        """
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[N, 5, 3] x, int64[N, 5] p) => (float[N, 5, 3] y)
        <float[3, 8] q, float[3, 8] k, float[3, 8] v, float[8, 3] o, float[5, 2] c, float[5, 2] s> {
            a = MatMul (x, q)
            b = MatMul (x, k)
            e = MatMul (x, v)
            a2 = RotaryEmbedding <num_heads = 2> (a, c, s, p)
            b2 = RotaryEmbedding <num_heads = 2> (b, c, s, p)
            d = Attention <q_num_heads = 2, kv_num_heads = 2> (a2, b2, e)
            y = MatMul (d, o)
        }""",
        {
            "q[1]": "aaaabbbb",
            "k[1]": "aaaabbbb",
            "v[1]": "aaaabbbb",
            "o[0]": "aaaabbbb",
        },
    ),
    "queries of cached keys": (
        """
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[N, 5, 3] x, float[N, 2, 4, 2] i, float[N, 2, 4, 3] j)
            => (float[N, 5, 3] y, float[N, 2, 9, 2] m, float[N, 2, 9, 3] n)
        <float[3, 8] q, float[3, 4] k, float[3, 6] v, float[12, 3] o> {
            a = MatMul (x, q)
            b = MatMul (x, k)
            c = MatMul (x, v)
            d, m, n = Attention <q_num_heads = 4, kv_num_heads = 2> (a, b, c, , i, j)
            y = MatMul (d, o)
        }""",
        {"q[1]": "aabbaabb", "k[1]": "....", "v[1]": "......", "o[0]": "aaabbbaaabbb"},
    ),
    "queries of one key": (
        """
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[N, 5, 3] x, float[N, 1, 5, 5] e) => (float[N, 5, 3] y)
        <float[3, 4] q, float[3, 2] k, float[3, 2] v, float[4, 3] o> {
            a = MatMul (x, q)
            b = MatMul (x, k)
            c = MatMul (x, v)
            d = Attention <q_num_heads = 2, kv_num_heads = 1, scale = 0.7> (a, b, c, e)
            y = MatMul (d, o)
        }""",
        {"q[1]": "aabb", "k[1]": "..", "v[1]": "..", "o[0]": "aabb"},
    ),
    "rotary in pairs beside plain dimensions": (
        """
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[N, 5, 3] x, int64[N, 5] p) => (float[N, 2, 5, 3] y)
        <float[5, 4] c, float[5, 4] s, float[12, 3] o, int64[4] z = {0, 5, 2, 12}, float[3, 24] w> {
            a = MatMul (x, w)
            b = Reshape (a, z)
            d = Transpose <perm = [0, 2, 1, 3]> (b)
            e = RotaryEmbedding <interleaved = 1, rotary_embedding_dim = 8> (d, c, s, p)
            y = MatMul (e, o)
        }""",
        {
            "o[0]": "aabbccddefgh",
            "c[1]": "abcd",
            "s[1]": "abcd",
            "w[1]": "aabbccddefgh" * 2,
        },
    ),
    "four bits in blocks": (
        """
        g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 8] w, uint4[8, 3] v, float[4, 3] t, uint4[4, 3] z, float[3, 2] u> {
            h = MatMul (x, w)
            c = DequantizeLinear <axis = 0, block_size = 2> (v, t, z)
            k = MatMul (h, c)
            y = MatMul (k, u)
        }""",
        {
            "w[1]": "aabbccdd",
            "v[0]": "aabbccdd",
            "t[0]": "abcd",
            "z[0]": "abcd",
            "v[1]": "efg",
            "t[1]": "efg",
            "u[0]": "efg",
        },
    ),
    "half precision": (
        """
        g (float16[N, 3] x) => (float16[N, 2] y) <float16[3, 4] w, float16[4, 2] v> {
            a = MatMul (x, w)
            b = Tanh (a)
            y = MatMul (b, v)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd"},
    ),
    "what a branch captures stays": (
        """
        g (float[N, 3] x, bool c) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v, float[3,
            5] q, float[5, 2] r> {
            a = MatMul (x, w)
            b = If (c) <then_branch = t () => (float[N, 2] d) { d = MatMul (a, v) },
                        else_branch = e () => (float[N, 2] f) { h = MatMul (a, v)  f = Neg (h) }>
            k = MatMul (x, q)
            m = MatMul (k, r)
            y = Add (b, m)
        }""",
        {"w[1]": "....", "v[0]": "....", "q[1]": "abcde", "r[0]": "abcde"},
    ),
    "weights behind DequantizeLinear": (
        """
        g (float[N, 3] x) => (float[N, 2] y)
        <int8[4, 3] w, float[4] s, int8[4] z, float[4] b, int8[4, 2] v, float[2, 2] t> {
            a = DequantizeLinear <axis = 0> (w, s, z)
            h = Gemm <transB = 1> (x, a, b)
            c = DequantizeLinear <axis = 0, block_size = 2> (v, t)
            y = MatMul (h, c)
        }""",
        {
            "w[0]": "aabb",
            "s[0]": "aabb",
            "z[0]": "aabb",
            "b[0]": "aabb",
            "v[0]": "aabb",
            "t[0]": "ab",
        },
    ),
    "quantized activations": (
        """
        g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w, float[4, 2] v, float s = {0.1}, uint8 z = {128}> {
            a = MatMul (x, w)
            b = QuantizeLinear (a, s, z)
            c = DequantizeLinear (b, s, z)
            y = MatMul (c, v)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd"},
    ),
    "integer sums stay": (
        """
        g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w, uint8[4, 2] v, float s = {0.1}> {
            a = MatMul (x, w)
            b, c, d = DynamicQuantizeLinear (a)
            e = MatMulInteger (b, v, d)
            f = Cast <to = 1> (e)
            y = Mul (f, c)
        }""",
        {"w[1]": "....", "v[0]": "...."},
    ),
    "group norm by groups": (
        """
        g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[4, 3, 1, 1] w, float[4] s, float[4] b, float[2, 4, 1, 1] v> {
            a = Conv (x, w)
            c = GroupNormalization <num_groups = 2> (a, s, b)
            y = Conv (c, v)
        }""",
        {"w[0]": "abab", "s[0]": "abab", "v[1]": "abab"},
    ),
    "group norm as a reshaped instance norm": (
        """
        g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[6, 3, 1, 1] w, float[2] s, float[2] b, float[6, 1, 1] t, float[2, 6, 1, 1] v,
            int64[3] r = {0, 2, -1}> {
            a = Conv (x, w)
            c = Reshape (a, r)
            d = InstanceNormalization (c, s, b)
            f = Shape (a)
            e = Reshape (d, f)
            h = Mul (e, t)
            y = Conv (h, v)
        }""",
        {"w[0]": "abcabc", "t[0]": "abcabc", "v[1]": "abcabc"},
    ),
    "batch norm in training": (
        """
        g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[4, 3, 1, 1] w, float[4] s, float[4] b, float[4] m, float[4] q, float[2, 4, 1, 1] v> {
            a = Conv (x, w)
            c, d, e = BatchNormalization <training_mode = 1> (a, s, b, m, q)
            y = Conv (c, v)
        }""",
        {"w[0]": "abcd", "s[0]": "abcd", "m[0]": "abcd", "v[1]": "abcd"},
    ),
    "normalised over space and samples": (
        """
        g (float[2, 3, 4, 4] x) => (float[2, 2, 4, 4] y) <float[4, 3, 1, 1] w, float[2, 4, 1,
            1] v> {
            a = Conv (x, w)
            b = MeanVarianceNormalization (a)
            y = Conv (b, v)
        }""",
        {"w[0]": "abcd", "v[1]": "abcd"},
    ),
    "looked up along another axis": (
        """
        g (float[N, 5, 3] x, int64[N, 2, 1] i) => (float[N, 2, 2] y)
        <float[3, 4] w, float[4, 2] v, int64[3] e = {1, 1, 4}> {
            a = MatMul (x, w)
            j = Expand (i, e)
            b = GatherElements <axis = 1> (a, j)
            y = MatMul (b, v)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd"},
    ),
    "rows gathered and scattered": (
        """
        g (float[7, 3] x, int64[2, 1] i) => (float[2, 2] y, float[7, 2] z)
        <float[3, 4] w, float[4, 2] v, float[4, 2] u> {
            a = MatMul (x, w)
            b = GatherND (a, i)
            y = MatMul (b, v)
            d = Neg (b)
            c = ScatterND (a, i, d)
            z = MatMul (c, u)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd", "u[0]": "abcd"},
    ),
    "ranked along another axis": (
        """
        g (float[N, 5, 3] x) => (float[N, 2, 2] y, int64[N, 5] z)
        <float[3, 4] w, float[4, 2] v, float[3, 3] u, int64[1] two = {2}> {
            a = MatMul (x, w)
            b, i = TopK <axis = 1> (a, two)
            y = MatMul (b, v)
            c = MatMul (x, u)
            z = ArgMax <axis = 2, keepdims = 0> (c)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd", "u[1]": "..."},
    ),
    "regions": (
        """
        g (float[2, 3, 8, 8] x) => (float[2, 2, 2, 2] y)
        <float[4, 3, 1, 1] w, float[2, 4, 1, 1] v, float[2, 4] r = {0, 0, 4, 4, 1, 1, 6, 5},
            int64[2] i = {0, 1}> {
            a = Conv (x, w)
            b = RoiAlign <output_height = 2, output_width = 2> (a, r, i)
            y = Conv (b, v)
        }""",
        {"w[0]": "abcd", "v[1]": "abcd"},
    ),
    "runtime's fused ops": (
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N, 5, 3] x) => (float[N, 5, 2] y)
        <float[3, 4] e, float[4] s, float[4] t, float[3, 4] w, float[3] c, float[3, 4] o,
            float[4] u, float[2, 4] v> {
            a = MatMul (x, e)
            f = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (a, w)
            g2 = com.microsoft.BiasGelu (f, c)
            h = MatMul (g2, o)
            k, , , l = com.microsoft.SkipLayerNormalization (a, h, s, t, u)
            m = com.microsoft.QuickGelu (l)
            n = Add (k, m)
            y = com.microsoft.FusedMatMul <transB = 1> (n, v)
        }""",
        {
            "e[1]": "abcd",
            "s[0]": "abcd",
            "w[1]": "abcd",
            "w[0]": "efg",
            "c[0]": "efg",
            "o[0]": "efg",
            "u[0]": "abcd",
            "v[1]": "abcd",
        },
    ),
    "runtime's grouped queries": (
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N, 5, 3] x) => (float[N, 5, 3] y)
        <float[3, 32] q, float[3, 16] k, float[3, 16] v, float[32, 3] o, int32[1] l = {4},
            int32 t = {5}> {
            n = Shape <end = 1> (x)
            s = Expand (l, n)
            a = MatMul (x, q)
            b = MatMul (x, k)
            c = MatMul (x, v)
            d = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2>
                (a, b, c, , , s, t)
            y = MatMul (d, o)
        }""",
        {
            "q[1]": "a" * 16 + "b" * 16,
            "k[1]": "a" * 8 + "b" * 8,
            "v[1]": "a" * 8 + "b" * 8,
            "o[0]": "a" * 16 + "b" * 16,
        },
    ),
    "runtime's grouped queries on one axis": (
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N, 5, 3] x) => (float[N, 5, 3] y)
        <float[3, 64] w, float[32, 3] o, int32[1] l = {4}, int32 t = {5}, float[1, 4, 5, 5] m> {
            n = Shape <end = 1> (x)
            s = Expand (l, n)
            a = MatMul (x, w)
            d = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2>
                (a, , , , , s, t, , , , m)
            y = MatMul (d, o)
        }""",
        {
            "w[1]": "a" * 16 + "b" * 16 + ("a" * 8 + "b" * 8) * 2,
            "o[0]": "a" * 16 + "b" * 16,
            "m[1]": "aabb",
        },
    ),
    "runtime's queries of cached keys, on one axis": (
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N, 1, 3] x, float[N, 2, 4, 16] i, float[N, 2, 4, 16] j)
            => (float[N, 1, 3] y, float[N, 2, 5, 16] p, float[N, 2, 5, 16] r)
        <float[3, 128] w, float[64, 3] o, int32[1] l = {4}, int32 t = {5}, float[16, 8] c,
            float[16, 8] z> {
            n = Shape <end = 1> (x)
            s = Expand (l, n)
            a = MatMul (x, w)
            d, p, r = com.microsoft.GroupQueryAttention
                <num_heads = 4, kv_num_heads = 2, do_rotary = 1> (a, , , i, j, s, t, c, z)
            y = MatMul (d, o)
        }""",
        {
            "w[1]": ("a" * 16 + "b" * 16) * 2 + "." * 64,
            "o[0]": ("a" * 16 + "b" * 16) * 2,
        },
    ),
    "beside a product of few bits": (
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] u, float[4, 32] v, uint8[32, 1, 16] w, float[32, 1] s, float[32, 4] a,
            float[4, 2] b> {
            c = MatMul (x, u)
            d = MatMul (c, v)
            e = com.microsoft.MatMulNBits <K = 32, N = 32, bits = 4, block_size = 32> (d, w, s)
            f = MatMul (e, a)
            y = MatMul (f, b)
        }""",
        {
            "u[1]": "abcd",
            "v[0]": "abcd",
            "v[1]": "." * 32,
            "w[0]": "." * 32,
            "a[0]": "." * 32,
            "a[1]": "efgh",
        },
    ),
    "runtime's attention": (
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N, 5, 4] x) => (float[N, 5, 2] y)
        <float[4, 6] i, float[6, 24] w, float[24] b, float[8, 4] k, float[4, 4] l, float[12] c,
            float[4, 2] v> {
            e = MatMul (x, i)
            a = com.microsoft.Attention <num_heads = 2> (e, w, b)
            m = MatMul (a, k)
            d = com.microsoft.MultiHeadAttention <num_heads = 2> (m, m, m, c)
            y = MatMul (d, v)
        }""",
        {
            "i[1]": "abcdef",
            "w[0]": "abcdef",
            "w[1]": "gggghhhh" * 3,
            "b[0]": "gggghhhh" * 3,
            "k[0]": "gggghhhh",
            "k[1]": "iijj",
            "c[0]": "iijj" * 3,
            "v[0]": "iijj",
        },
    ),
    "a Gemm that the runtime fused": (
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N, 3] x) => (float[N, 2] y) <float[4, 3] w, float[4] b, float[4, 2] v> {
            a = com.microsoft.FusedGemm
                <activation = "LeakyRelu", activation_alpha = 0.3, transB = 1> (x, w, b)
            y = Gemm (a, v)
        }""",
        {"w[0]": "abcd", "b[0]": "abcd", "v[0]": "abcd"},
    ),
    "a Conv that the runtime fused": (
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N, 3, 5, 5] x) => (float[N, 2, 5, 5] y)
        <float[4, 3, 3, 3] w, float[4] b, float[4, 3, 1, 1] u, float[2, 4, 1, 1] v> {
            s = Conv (x, u)
            a = com.microsoft.FusedConv <activation = "Relu", pads = [1, 1, 1, 1]> (x, w, b, s)
            y = Conv (a, v)
        }""",
        {"w[0]": "abcd", "b[0]": "abcd", "u[0]": "abcd", "v[1]": "abcd"},
    ),
    "both matrices read transposed": (
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N, 3] x) => (float[2, N] y) <float[3, 4] w, float[2, 4] v> {
            a = MatMul (x, w)
            t = Transpose <perm = [1, 0]> (a)
            b = com.microsoft.FusedMatMul <transA = 1, transB = 1> (t, v)
            y = Transpose <perm = [1, 0]> (b)
        }""",
        {"w[1]": "abcd", "v[1]": "abcd"},
    ),
    "heads in one axis with the batch": (
        """
        g (float[N, L, 6] x) => (float[N, L, 2] y)
        <float[6, 8] q, float[6, 8] k, float[6, 8] v, float[8, 2] o, int64[1] zero = {0},
         int64[1] one = {1}, int64[1] heads = {4}, int64[1] size = {2}, int64[1] all = {8}> {
            s = Shape (x)
            n = Gather (s, zero)
            l = Gather (s, one)
            nh = Mul (n, heads)
            cut = Concat <axis = 0> (l, nh, size)
            joined = Concat <axis = 0> (l, n, all)
            t = Transpose <perm = [1, 0, 2]> (x)
            q1 = MatMul (t, q)
            k1 = MatMul (t, k)
            v1 = MatMul (t, v)
            q2 = Reshape <allowzero = 1> (q1, cut)
            k2 = Reshape <allowzero = 1> (k1, cut)
            v2 = Reshape (v1, cut)
            q3 = Transpose <perm = [1, 0, 2]> (q2)
            k3 = Transpose <perm = [1, 2, 0]> (k2)
            v3 = Transpose <perm = [1, 0, 2]> (v2)
            scores = MatMul (q3, k3)
            shares = Softmax <axis = -1> (scores)
            m = MatMul (shares, v3)
            back = Transpose <perm = [1, 0, 2]> (m)
            j = Reshape (back, joined)
            p = MatMul (j, o)
            y = Transpose <perm = [1, 0, 2]> (p)
        }""",
        {
            "q[1]": "aabbccdd",
            "k[1]": "aabbccdd",
            "v[1]": "aabbccdd",
            "o[0]": "aabbccdd",
        },
    ),
    "a table of positions that is cut to the length": (
        """
        g (float[N, L, 3] x) => (float[N, L, 2] y)
        <float[3, 4] w, float[1, 20, 4] p, float[4, 2] v, int64[1] zero = {0}, int64[1] one = {1}> {
            a = MatMul (x, w)
            s = Shape (x)
            l = Gather (s, one)
            r = Slice (p, zero, l, one)
            b = Add (a, r)
            y = MatMul (b, v)
        }""",
        {"w[1]": "abcd", "p[2]": "abcd", "v[0]": "abcd"},
    ),
    "one weight as it is and transposed": (
        """
        g (float[N, 5] x) => (float[N, 3] y)
        <float[5, 4] i, float[4, 4] w, float[4, 3] o> {
            a = MatMul (x, i)
            b = MatMul (a, w)
            r = Relu (b)
            t = Transpose <perm = [1, 0]> (w)
            c = MatMul (r, t)
            y = MatMul (c, o)
        }""",
        {"i[1]": "abcd", "w[0]": "abcd", "w[1]": "efgh", "o[0]": "abcd"},
    ),
}

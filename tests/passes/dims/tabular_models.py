"""Operators of ai.onnx.ml between layers, as `rule_models.py` has others."""

HEADER = '<ir_version: 10, opset_import: ["" : 21, "ai.onnx.ml" : 3]>'

TEXTS = {
    "layers behind a scaler": (
        """
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v> {
            s = ai.onnx.ml.Scaler <offset = [-2.5, -1.0, -2.0], scale = [2.0, 1.0, 3.0]> (x)
            a = MatMul (s, w)
            b = Relu (a)
            y = MatMul (b, v)
        }""",
        {"w[0]": "...", "w[1]": "abcd", "v[0]": "abcd"},
    ),
    "scaled by one number and by one for each feature": (
        """
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v> {
            a = MatMul (x, w)
            r = ai.onnx.ml.Scaler <offset = [0.5], scale = [2.0]> (a)
            s = ai.onnx.ml.Scaler <offset = [0.5, 1.0, 2.0, 3.0], scale = [2.0, 1.0, 3.0, 4.0]> (r)
            i = ai.onnx.ml.Imputer <imputed_value_floats = [0.5, 1.0, 2.0, 3.0],
                replaced_value_float = 7.0> (s)
            y = MatMul (i, v)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd"},
    ),
    "integers made floats by a scaler": (
        """
        g (int64[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v> {
            s = ai.onnx.ml.Scaler <offset = [0.5], scale = [2.0]> (x)
            a = MatMul (s, w)
            y = MatMul (a, v)
        }""",
        {"w[1]": "abcd", "v[0]": "abcd"},
    ),
    "divided by the norm": (
        """
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 5] u, float[5, 2] v> {
            a = MatMul (x, w)
            n = ai.onnx.ml.Normalizer <norm = "L2"> (a)
            b = MatMul (n, u)
            y = MatMul (b, v)
        }""",
        {"w[1]": "....", "u[0]": "....", "u[1]": "abcde", "v[0]": "abcde"},
    ),
    "categories beside numbers": (
        """
        g (int64[N, 2] k, float[N, 2] x) => (float[N, 2] y)
        <float[2, 4] e, float[10, 3] w, float[3, 2] v, int64[2] s = {-1, 6}> {
            a = MatMul (x, e)
            o = ai.onnx.ml.OneHotEncoder <cats_int64s = [0, 1, 3], zeros = 1> (k)
            f = Reshape (o, s)
            j = ai.onnx.ml.FeatureVectorizer <inputdimensions = [6, 4]> (f, a)
            h = MatMul (j, w)
            y = MatMul (h, v)
        }""",
        {"e[1]": "abcd", "w[0]": "......abcd", "w[1]": "efg", "v[0]": "efg"},
    ),
    "labels mapped to numbers": (
        """
        g (int64[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v> {
            m = ai.onnx.ml.LabelEncoder <keys_int64s = [0, 1, 2], values_floats = [0.5, 1.5, 2.5],
                default_float = 9.0> (x)
            a = MatMul (m, w)
            y = MatMul (a, v)
        }""",
        {"w[0]": "...", "w[1]": "abcd", "v[0]": "abcd"},
    ),
    "the label of the largest score": (
        """
        g (float[N, 3] x) => (float[N, 4] p, float[N, 4] y)
        <float[3, 5] w, float[5, 4] v, float[4] b = {9, -9, 9, -9}, float[4] c = {7, 8, 9, 5},
         int64[2] s = {-1, 1}> {
            a = MatMul (x, w)
            m = MatMul (a, v)
            p = Mul (m, b)
            i = ArgMax <axis = 1> (p)
            l = ai.onnx.ml.ArrayFeatureExtractor (c, i)
            r = Reshape (l, s)
            y = Mul (p, r)
        }""",
        {"w[1]": "abcde", "v[0]": "abcde", "v[1]": "...."},
    ),
    "columns picked out": (
        """
        g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w, float[2, 5] u, float[5, 2] v, int64[2] c = {3, 1}> {
            a = MatMul (x, w)
            b = ai.onnx.ml.ArrayFeatureExtractor (a, c)
            h = MatMul (b, u)
            y = MatMul (h, v)
        }""",
        {"w[1]": "....", "u[0]": "..", "u[1]": "abcde", "v[0]": "abcde"},
    ),
    "layers behind trees": (
        """
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 2] e, float[2, 4] w, float[4, 2] v> {
            a = MatMul (x, e)
            t = ai.onnx.ml.TreeEnsembleRegressor <n_targets = 2,
                nodes_treeids = [0, 0, 0], nodes_nodeids = [0, 1, 2], nodes_featureids = [1, 0, 0],
                nodes_modes = ["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values = [0.2, 0.0, 0.0],
                nodes_truenodeids = [1, 0, 0], nodes_falsenodeids = [2, 0, 0],
                target_treeids = [0, 0, 0, 0], target_nodeids = [1, 1, 2, 2],
                target_ids = [0, 1, 0, 1], target_weights = [1.0, 2.0, 3.0, 5.0]> (a)
            h = MatMul (t, w)
            y = MatMul (h, v)
        }""",
        {"e[1]": "..", "w[0]": "..", "w[1]": "abcd", "v[0]": "abcd"},
    ),
}

MODELS = {name: (HEADER + text, expected) for name, (text, expected) in TEXTS.items()}

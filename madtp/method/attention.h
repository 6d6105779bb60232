/* Self-attention on a CPU and what it says of its tokens, a call each: what madtp.method.attention does step by step.
 *
 * For one type of numbers, `Number`, of which STEP rows lie side by side in a tile. `OF(name)` is a name of that type.
 * There are `OF(products)`, and `OF(rounded)`, which makes numbers of floats; `attention.c` has those of each type.
 *
 * Shapes: B batch, H heads, L tokens, of which F in front stay (MADTP: the class token) and N = L - F are prunable, E
 * width of a head, P and W the length and the width of a head, filled up to whole tiles by zeros; D and M are E and L,
 * filled up to a multiple of STEP.
 */

/* A sample's keys and values in tiles, and room for a block of its queries. */
typedef struct {
    int64_t heads, length, width, padded, wide, deep, many; /* H, L, E, P, W, D, M */
    float *weights, *mixed;  /* of one head: [BLOCK, P], and the output [BLOCK, W] */
    float *largest, *first;  /* largest weights of any head [BLOCK, P], the class token's weights [H, P] */
    Number *keys, *values;   /* [H, P / TILE, D / STEP, TILE, STEP] and [H, W / TILE, M / STEP, TILE, STEP] */
    Number *asked, *factors; /* of one head: the queries [BLOCK, D], the weights, rounded [BLOCK, P] */
} OF(Sequence);

/* A sample without its numbers; `weights` is NULL where there is no memory, and what is to be freed. */
static OF(Sequence) OF(sequence_of)(int64_t heads, int64_t length, int64_t width)
{
    OF(Sequence) own = {.heads = heads, .length = length, .width = width, .padded = in_tiles(length)};
    own.wide = in_tiles(width);
    own.deep = (width + STEP - 1) / STEP * STEP;
    own.many = (length + STEP - 1) / STEP * STEP;
    int64_t floats = BLOCK * (2 * own.padded + own.wide) + heads * own.padded;
    int64_t of_keys = heads * own.deep * own.padded, of_values = heads * own.many * own.wide;
    int64_t numbers = of_keys + of_values + BLOCK * (own.deep + (STEP > 1 ? own.padded : 0));
    own.weights = calloc(floats * sizeof(float) + numbers * sizeof(Number), 1);
    own.mixed = own.weights + BLOCK * own.padded;
    own.largest = own.mixed + BLOCK * own.wide;
    own.first = own.largest + BLOCK * own.padded;
    own.keys = (Number *)(own.first + heads * own.padded);
    own.values = own.keys + of_keys;
    own.asked = own.values + of_values;
    own.factors = STEP > 1 ? own.asked + BLOCK * own.deep : (Number *)own.weights;
    return own;
}

/* Reads keys and values, their heads and tokens `strides` numbers apart. */
static void OF(read)(OF(Sequence) own, const Number *key, const Number *value, const int64_t strides[3])
{
    for (int64_t head = 0; head < own.heads; head++)
        for (int64_t token = 0; token < own.length; token++) {
            const Number *its_key = key + head * strides[1] + token * strides[2];
            const Number *its_value = value + head * strides[1] + token * strides[2];
            Number *column = own.keys + (head * own.padded + token / TILE * TILE) * own.deep + token % TILE * STEP;
            Number *row = own.values + head * own.wide * own.many + token / STEP * TILE * STEP + token % STEP;
            for (int64_t channel = 0; channel < own.width; channel++)
                column[channel / STEP * TILE * STEP + channel % STEP] = its_key[channel];
            for (int64_t start = 0; start < own.width; start += TILE)
                for (int64_t channel = start; channel < start + TILE && channel < own.width; channel++)
                    row[start * own.many + (channel - start) * STEP] = its_value[channel];
        }
}

/* The weights and the output of one head for `count` queries, at most BLOCK, that stand from `token` on, their heads
 * and tokens `strides` apart. */
static void OF(attend_head)(
    OF(Sequence) own, const Number *query, const int64_t strides[3], Allowed allowed, int64_t head, int64_t token,
    int64_t count)
{
    float scale = 1 / sqrtf(own.width), sums[BLOCK];
    for (int64_t one = 0; one < count; one++) {
        const Number *its = query + head * strides[1] + (token + one) * strides[2];
        for (int64_t channel = 0; channel < own.width; channel++)
            own.asked[one * own.deep + channel] = STEP > 1 ? its[channel] : (Number)(scale * its[channel]);
    }
    OF(products)(own.asked, own.deep, count, own.keys + head * own.padded * own.deep, own.deep, own.padded,
                 own.weights);
    for (int64_t one = 0; one < count; one++) {
        float *weights = own.weights + one * own.padded;
        const uint8_t *mask = allowed.mask;
        mask = mask ? mask + head * allowed.steps[1] + (token + one) * allowed.steps[2] : NULL;
        for (int64_t other = 0; STEP > 1 && other < own.padded; other++) /* halves lose what is scaled before */
            weights[other] *= scale;
        sums[one] = softmax(weights, allowed.bias, mask, mask ? allowed.steps[3] : 0, own.length);
        if (STEP > 1) /* as shares of the largest, which is then exact */
            OF(rounded)(weights, own.padded, sums[one], own.factors + one * own.padded);
    }
    OF(products)(own.factors, own.padded, count, own.values + head * own.wide * own.many, own.many, own.wide,
                 own.mixed);
    for (int64_t one = 0; STEP > 1 && one < count; one++)
        for (int64_t channel = 0; channel < own.wide; channel++)
            own.mixed[one * own.wide + channel] /= sums[one];
}

/* Attends from a block of queries, as `attend_head`, by all heads.
 *
 * Fills output [count, H, E] and, where `paid` is not NULL, the largest weights of any head and what the class token
 * pays to each query [count], weighted by heads.
 */
static void OF(attend_block)(
    OF(Sequence) own, const Number *query, const int64_t strides[3], Allowed allowed, int64_t token, int64_t count,
    Number *output, float *paid)
{
    float total[BLOCK] = {0}, weighted[BLOCK] = {0};
    if (paid)
        memset(own.largest, 0, count * own.padded * sizeof(float));
    for (int64_t head = 0; head < own.heads; head++) {
        OF(attend_head)(own, query, strides, allowed, head, token, count);
        if (token == 0)
            memcpy(own.first + head * own.padded, own.weights, own.padded * sizeof(float));
        for (int64_t one = 0; one < count; one++)
            OF(rounded)(own.mixed + one * own.wide, own.width, 1, output + (one * own.heads + head) * own.width);
        for (int64_t one = 0; paid && one < count; one++) {
            const float *row = own.mixed + one * own.wide;
            float size = sqrtf(dot(row, row, own.width));
            weighted[one] += size * own.first[head * own.padded + token + one];
            total[one] += size;
        }
        for (int64_t place = 0; paid && place < count * own.padded; place++) { /* NaN is larger than all numbers */
            int larger = own.weights[place] > own.largest[place] || own.weights[place] != own.weights[place];
            own.largest[place] = larger ? own.weights[place] : own.largest[place];
        }
    }
    for (int64_t one = 0; paid && one < count; one++)
        paid[one] = weighted[one] / (total[one] + EPSILON);
}

/* What a call is given; see `madtp_attend`. */
typedef struct {
    const Number *query, *key, *value;
    const int64_t *strides;
    Allowed allowed;
    int64_t heads, length, width, front;
} OF(Given);

/* Attends from the queries `from` to `to` of one sample and fills their part of its output and of what its class token
 * pays; and, where `sums` is not NULL, what they add to the sums. Returns 0, or 1 where there is no memory. */
static int OF(attend_from)(
    OF(Given) given, int64_t from, int64_t to, Number *output, float *sums, float *cls_attention)
{
    int64_t front = given.front, tokens = given.length - front, apart = given.heads * given.width;
    OF(Sequence) own = OF(sequence_of)(given.heads, given.length, given.width);
    float paid[BLOCK];
    if (!own.weights)
        return 1;
    OF(read)(own, given.key, given.value, given.strides);
    for (int64_t head = 0; sums && from > 0 && head < own.heads; head++) {
        OF(attend_head)(own, given.query, given.strides, given.allowed, head, 0, 1);
        memcpy(own.first + head * own.padded, own.weights, own.padded * sizeof(float));
    }
    for (int64_t token = 0; sums && token < tokens; token++)
        sums[token] = 0;
    for (int64_t token = from; token < to; token += BLOCK) {
        int64_t count = to - token < BLOCK ? to - token : BLOCK;
        OF(attend_block)(own, given.query, given.strides, given.allowed, token, count, output + token * apart,
                     sums ? paid : NULL);
        for (int64_t one = token < front ? front - token : 0; sums && one < count; one++) {
            cls_attention[token + one - front] = paid[one];
            for (int64_t other = 0; other < tokens; other++)
                sums[other] += own.largest[one * own.padded + front + other];
        }
    }
    for (int64_t token = 0; !sums && from == 0 && token < tokens; token++) {
        cls_attention[token] = 0;
        for (int64_t head = 0; head < own.heads; head++)
            cls_attention[token] += own.first[head * own.padded + front + token] / own.heads;
    }
    free(own.weights);
    return 0;
}

/* Self-attention with scores, in some threads.
 *
 * query, key and value [B, H, L, E], their samples, heads and tokens `strides` numbers apart; `mask` NULL or booleans
 * whose samples, heads, queries and keys are `steps` apart; `bias` NULL or numbers [B, L] that are added to the logits.
 * The queries of every sample are worked on in `parts`. Fills output [B, L, H, E]; the sums over the prunable queries
 * of the largest weight of any head, those of each part by themselves, [parts, B, N]; and what the class token pays,
 * [B, N], each head weighted by its share in the token's output norm. Where `sums` is NULL, that is the plain mean over
 * the heads. Returns 0, or 1 where there is no memory.
 */
int OF(madtp_attend)(
    const Number *query, const Number *key, const Number *value, const int64_t strides[3], const uint8_t *mask,
    const int64_t steps[4], const float *bias, int64_t batch, int64_t heads, int64_t length, int64_t width,
    int64_t front, int64_t parts, int64_t threads, Number *output, float *sums, float *cls_attention)
{
    int64_t tokens = length - front;
    int failed = 0;
    (void)threads; /* not used where the compiler knows no OpenMP */
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : failed)
    for (int64_t share = 0; share < batch * parts; share++) {
        int64_t sample = share / parts, part = share % parts, start = sample * strides[0];
        Allowed allowed = {mask ? mask + sample * steps[0] : NULL, steps, bias ? bias + sample * length : NULL};
        OF(Given) given = {query + start, key + start, value + start, strides, allowed, heads, length, width, front};
        failed |= OF(attend_from)(given, part * length / parts, (part + 1) * length / parts,
                              output + sample * length * heads * width,
                              sums ? sums + (part * batch + sample) * tokens : NULL, cls_attention + sample * tokens);
    }
    return failed;
}


/* Pruning by coverage on a CPU: all of it for a few short sequences, and the choice for any, a call each; what
 * madtp.method.coverage does step by step.
 *
 * Shapes: B batch, H heads, L = F + N tokens, of which F in front stay and N are prunable, E width of a head, D of a
 * token, n tokens kept. All arrays lie row by row.
 */

#include "vectors.h"

/* One sample: the cosines of its tokens [N, N], rows `stride` numbers apart, their importance [N], and n. */
typedef struct {
    const float *cosine, *significance;
    int64_t stride, tokens, keep;
} Sample;

/* For every token its largest cosine with a kept one, which that is, and the largest with another one, at least -1. */
static void nearest(Sample own, const int32_t *kept, float *best, int32_t *owner, float *second)
{
    for (int64_t token = 0; token < own.tokens; token++) {
        best[token] = -INFINITY;
        second[token] = -1;
        owner[token] = 0;
    }
    for (int32_t one = 0; one < own.keep; one++) {
        const float *row = own.cosine + kept[one] * own.stride;
        for (int64_t token = 0; token < own.tokens; token++) {
            int better = row[token] > best[token];
            float runner_up = better ? best[token] : row[token];
            second[token] = runner_up > second[token] ? runner_up : second[token];
            owner[token] = better ? one : owner[token];
            best[token] = better ? row[token] : best[token];
        }
    }
}

/* Which of the kept tokens each goes into; a kept one is its own. */
static void owners(Sample own, const int32_t *kept, int32_t *owner)
{
    float best[own.tokens], second[own.tokens];
    nearest(own, kept, best, owner, second);
    for (int32_t one = 0; one < own.keep; one++)
        owner[kept[one]] = one;
}

/* Puts tokens into their order. */
static void sort(int32_t *kept, int64_t keep)
{
    for (int64_t place = 1; place < keep; place++) {
        int32_t token = kept[place];
        int64_t free = place;
        for (; free > 0 && kept[free - 1] > token; free--)
            kept[free] = kept[free - 1];
        kept[free] = token;
    }
}

/* The n largest S d, with d the distance to the nearest token that is more important. */
static void peaks(Sample own, int32_t *kept)
{
    int32_t rank[own.tokens], place = 0;
    float prominence[own.tokens];
    for (int64_t token = 0; token < own.tokens; token++)
        rank[token] = rank_of(own.significance, own.tokens, token);
    for (int64_t token = 0; token < own.tokens; token++) {
        const float *row = own.cosine + token * own.stride;
        float largest = -1;
#pragma omp simd reduction(max : largest)
        for (int64_t other = 0; other < own.tokens; other++) {
            float cosine = rank[other] < rank[token] ? row[other] : -1;
            largest = cosine > largest ? cosine : largest;
        }
        prominence[token] = own.significance[token] * (1 - largest);
    }
    for (int32_t token = 0; token < own.tokens; token++)
        if (rank_of(prominence, own.tokens, token) < own.keep)
            kept[place++] = token;
}

/* Each kept token gives way to that of its group which covers the group best, the first of equally good ones. */
static void medoids(Sample own, int32_t *kept)
{
    int32_t owner[own.tokens];
    float most[own.keep];
    owners(own, kept, owner);
    for (int64_t one = 0; one < own.keep; one++)
        most[one] = -INFINITY;
    for (int32_t token = 0; token < own.tokens; token++) {
        const float *row = own.cosine + token * own.stride;
        int32_t group = owner[token];
        float covers = 0;
#pragma omp simd reduction(+ : covers)
        for (int64_t other = 0; other < own.tokens; other++)
            covers += owner[other] == group ? own.significance[other] * row[other] : 0;
        if (covers > most[group]) {
            most[group] = covers;
            kept[group] = token;
        }
    }
    sort(kept, own.keep);
}

/* What every token would gain as a newcomer, a kept one nothing; -1 where another one of its group gains more. */
static void newcomers(Sample own, const float *best, const int32_t *owner, float *gains)
{
    float most[own.keep];
    memset(most, 0, sizeof most);
    for (int64_t token = 0; token < own.tokens; token++) {
        const float *row = own.cosine + token * own.stride;
        float gain = 0;
#pragma omp simd reduction(+ : gain)
        for (int64_t other = 0; other < own.tokens; other++)
            gain += row[other] > best[other] ? own.significance[other] * (row[other] - best[other]) : 0;
        gains[token] = gain;
    }
    for (int64_t token = 0; token < own.tokens; token++)
        most[owner[token]] = fmaxf(most[owner[token]], gains[token]);
    for (int64_t token = 0; token < own.tokens; token++)
        gains[token] = gains[token] >= most[owner[token]] ? gains[token] : -1;
}

/* Minus what each kept token would be missed by; minus infinity where the kept one nearest to it is missed less. */
static void leavers(
    Sample own, const int32_t *kept, const float *best, const int32_t *owner, const float *second, float *missed)
{
    float loss[own.keep];
    memset(loss, 0, sizeof loss);
    for (int64_t token = 0; token < own.tokens; token++)
        loss[owner[token]] += own.significance[token] * (best[token] - second[token]);
    for (int64_t one = 0; one < own.keep; one++) {
        const float *row = own.cosine + kept[one] * own.stride;
        int64_t neighbour = -1;
        for (int64_t other = 0; other < own.keep; other++)
            if (other != one && (neighbour < 0 || row[kept[other]] > row[kept[neighbour]]))
                neighbour = other;
        missed[one] = neighbour < 0 || loss[one] <= loss[neighbour] ? -loss[one] : -INFINITY;
    }
}

/* The `wanted` places of the largest values, the largest first, equal ones in their order. */
static void largest_first(const float *values, int64_t count, int64_t wanted, int32_t *places)
{
    for (int32_t place = 0; place < count; place++) {
        int32_t rank = rank_of(values, count, place);
        if (rank < wanted)
            places[rank] = place;
    }
}

/* One round of exchange: the best newcomers come for those that are missed least, the better half of such pairs. */
static void exchange(Sample own, int32_t *kept)
{
    float best[own.tokens], second[own.tokens], after_best[own.tokens], gains[own.tokens], missed[own.keep], gained = 0;
    int32_t owner[own.tokens], come[own.keep], go[own.keep], after[own.keep], pairs = 0;
    nearest(own, kept, best, owner, second);
    newcomers(own, best, owner, gains);
    leavers(own, kept, best, owner, second, missed);
    largest_first(gains, own.tokens, own.keep, come);
    largest_first(missed, own.keep, own.keep, go);
    while (pairs < own.keep && gains[come[pairs]] > -missed[go[pairs]])
        pairs++;
    memcpy(after, kept, sizeof after);
    for (int64_t pair = 0; pair < (pairs + 1) / 2; pair++)
        after[go[pair]] = come[pair];
    nearest(own, after, after_best, owner, second);
    for (int64_t token = 0; token < own.tokens; token++)
        gained += own.significance[token] * (after_best[token] - best[token]);
    if (gained > 0)
        memcpy(kept, after, sizeof after);
    sort(kept, own.keep);
}

/* The n tokens that stay, and which of them each goes into. */
static void choose(Sample own, int32_t *kept, int32_t *owner)
{
    peaks(own, kept);
    medoids(own, kept);
    exchange(own, kept);
    owners(own, kept, owner);
}

/* S = (1 / N + C) / 2 of one sample, with C the class token's attention as a share, 1 / N where there is no such token;
 * 0 of a token that a mask hides, whose size is below 1. Returns the sum, no finite number if one of them is not. */
static float importance(const float *attention, const float *sizes, int64_t tokens, float *significance)
{
    float sum = 0, total = 0;
    for (int64_t token = 0; attention && token < tokens; token++)
        sum += attention[token];
    for (int64_t token = 0; token < tokens; token++) {
        float share = attention ? attention[token] / fmaxf(sum, 1e-8f) : 1.f / tokens;
        significance[token] = (share + 1.f / tokens) / 2 * (sizes && sizes[token] < 1 ? 0 : 1);
        total += significance[token];
    }
    return total;
}

/* Directions of tokens x [N, D] as columns of turned, in tiles: [stride / TILE, D, TILE]. Returns 0 where a length is no
 * finite number. */
static int turn(const float *x, int64_t tokens, int64_t width, float *turned)
{
    for (int64_t token = 0; token < tokens; token++) {
        const float *row = x + token * width;
        float length = sqrtf(dot(row, row, width));
        if (!isfinite(length))
            return 0;
        length = fmaxf(length, 1e-12f);
        float *column = turned + token / TILE * TILE * width + token % TILE;
        for (int64_t channel = 0; channel < width; channel++)
            column[channel * TILE] = row[channel] / length;
    }
    return 1;
}

/* Every kept token becomes the mean of what goes into it, weighed by sizes, NULL for one each; and the sizes' sums.
 * Where lengths are kept it is as long as what went into it is on average. */
static void absorb(
    const float *x, const float *sizes, const int32_t *owner, int64_t tokens, int64_t width, int64_t keep,
    int64_t keep_norm, float *merged, float *totals)
{
    float lengths[keep];
    memset(lengths, 0, sizeof lengths);
    memset(merged, 0, keep * width * sizeof(float));
    memset(totals, 0, keep * sizeof(float));
    for (int64_t token = 0; token < tokens; token++)
        totals[owner[token]] += sizes ? sizes[token] : 1;
    for (int64_t token = 0; token < tokens; token++) {
        const float *row = x + token * width;
        float weight = (sizes ? sizes[token] : 1) / totals[owner[token]], *into = merged + owner[token] * width;
        for (int64_t channel = 0; channel < width; channel++)
            into[channel] += weight * row[channel];
        if (keep_norm)
            lengths[owner[token]] += weight * sqrtf(dot(row, row, width));
    }
    for (int64_t place = 0; keep_norm && place < keep; place++) {
        float *row = merged + place * width, times = lengths[place] / fmaxf(sqrtf(dot(row, row, width)), 1e-8f);
        for (int64_t channel = 0; channel < width; channel++)
            row[channel] *= times;
    }
}

/* Keeps n of the N tokens of every sample and merges the others into them.
 *
 * x [B, L, D]; attention of the class token [B, N], NULL where there is none; sizes [B, L], NULL for one each. Fills
 * shortened [B, F + n, D], its sizes and the rows that these tokens were in [B, F + n], and which of the n each of the
 * others went into, [B, N]. Returns 0, or 1 where there is no memory or a number that is not finite.
 */
int madtp_cover(
    const float *x, const float *attention, const float *sizes, int64_t batch, int64_t front, int64_t tokens,
    int64_t width, int64_t keep, int64_t keep_norm, float *shortened, float *sizes_left, int64_t *rows, int64_t *owner)
{
    int64_t stride = in_tiles(tokens), length = front + tokens, left = front + keep;
    int32_t kept[keep], into[tokens];
    int64_t rows_of_cosine = stride + TOGETHER; /* as many as `products` may fill */
    float significance[tokens], *cosine = calloc((rows_of_cosine + width) * stride + TOGETHER, sizeof(float));
    float *turned = cosine + rows_of_cosine * stride; /* columns filled up by 0 */
    int failed = !cosine;
    for (int64_t sample = 0; !failed && sample < batch; sample++) {
        const float *given = x + sample * length * width, *own_sizes = sizes ? sizes + sample * length : NULL;
        const float *prunable = given + front * width, *their_sizes = sizes ? own_sizes + front : NULL;
        float *ours = shortened + sample * left * width, *totals = sizes_left + sample * left;
        float sum = importance(attention ? attention + sample * tokens : NULL, their_sizes, tokens, significance);
        failed = !isfinite(sum) || !turn(prunable, tokens, width, turned);
        if (failed)
            break;
        Sample own = {cosine, significance, stride, tokens, keep};
        for (int64_t token = 0; token < tokens; token += TILE)
            products(turned + token * width, 1, TILE, TILE, turned, width, stride, cosine + token * stride);
        choose(own, kept, into);
        absorb(prunable, their_sizes, into, tokens, width, keep, keep_norm, ours + front * width, totals + front);
        memcpy(ours, given, front * width * sizeof(float));
        for (int64_t place = 0; place < left; place++)
            rows[sample * left + place] = place < front ? place : front + kept[place - front];
        for (int64_t place = 0; place < front; place++)
            totals[place] = sizes ? own_sizes[place] : 1;
        for (int64_t token = 0; token < tokens; token++)
            owner[sample * tokens + token] = into[token];
    }
    free(cosine);
    return failed;
}

/* Chooses n of the N tokens of every sample by their cosines [B, N, N] and importance [B, N], in some threads.
 *
 * Fills kept [B, n] and which of the n each of them goes into, [B, N]. Returns 0, or 1 where a number is not finite.
 */
int madtp_choose(
    const float *cosine, const float *significance, int64_t batch, int64_t tokens, int64_t keep, int64_t threads,
    int64_t *kept, int64_t *owner)
{
    int failed = 0;
    (void)threads; /* not used where the compiler knows no OpenMP */
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : failed)
    for (int64_t sample = 0; sample < batch; sample++) {
        int32_t own_kept[keep], into[tokens];
        Sample own = {cosine + sample * tokens * tokens, significance + sample * tokens, tokens, tokens, keep};
        if (!isfinite(sum_of(own.significance, tokens)) || !isfinite(sum_of(own.cosine, tokens * tokens))) {
            failed = 1;
            continue;
        }
        choose(own, own_kept, into);
        for (int64_t one = 0; one < keep; one++)
            kept[sample * keep + one] = own_kept[one];
        for (int64_t token = 0; token < tokens; token++)
            owner[sample * tokens + token] = into[token];
    }
    return failed;
}

/* What the class token pays to each of the N tokens, the mean over the heads.
 *
 * query [B, H, L, E] and key, their samples, heads and tokens `query_strides` and `strides` numbers apart; bias of the
 * keys [B, L], added to the logits, or NULL. Fills attention [B, N].
 */
void madtp_class_attention(
    const float *query, const int64_t query_strides[3], const float *key, const int64_t strides[3], const float *bias,
    int64_t batch, int64_t heads, int64_t length, int64_t width, int64_t front, float *attention)
{
    int64_t tokens = length - front;
    float row[in_tiles(length)], scale = 1 / sqrtf(width);
    memset(attention, 0, batch * tokens * sizeof(float));
    for (int64_t sample = 0; sample < batch; sample++)
        for (int64_t head = 0; head < heads; head++) {
            const float *own = query + sample * query_strides[0] + head * query_strides[1];
            const float *keys = key + sample * strides[0] + head * strides[1];
            for (int64_t token = 0; token < length; token++)
                row[token] = dot(own, keys + token * strides[2], width) * scale;
            softmax(row, bias ? bias + sample * length : NULL, NULL, 0, length);
            for (int64_t token = 0; token < tokens; token++)
                attention[sample * tokens + token] += row[front + token] / heads;
        }
}

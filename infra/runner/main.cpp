// Score images with an exported detector: pvqae_runner FOLDER IMAGES... [--maps FOLDER] [--threads N]
//
// What run.py of the export does, in C++: the same layout, resizing, views, score and regions; a JSON object per line
// with the same keys. An image that can't be read gets a line with "error", and the exit status is 1.
// H0 W0 pixels of the file; H W of the canvas (the image in model pixels); S side of a view.

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>

#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#include <stb_image.h>
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb_image_write.h>

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

namespace {

constexpr long kMaxBytes = 256L << 20, kMaxPixels = 80'000'000;
constexpr int kSmallestSide = 8, kLargestSide = 65'535;
constexpr std::size_t kListed = 50;  // regions in a line
constexpr std::array kParts = {"s_prior", "s_recon", "product"};

struct Image {  // H0 x W0 x 3 in [0, 1]
    int height = 0, width = 0;
    std::vector<float> pixels;
};

struct View {  // a square of the canvas; the rest of S x S is padding
    int top = 0, left = 0;                              // of the square, negative where padding comes first
    int first_row = 0, first_column = 0, rows = 0, columns = 0;  // of the image in it
};

struct Map {  // H x W
    int height = 0, width = 0;
    std::vector<float> values;
};

// Python's round: halves to the even number, as the default rounding mode has it.
int rounded(double value) { return static_cast<int>(std::nearbyint(value)); }

// Six significant digits, as run.py writes shares and peaks.
double short_number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", value);
    return std::strtod(text, nullptr);
}

std::string content(const fs::path& file) {
    if (!fs::exists(file)) throw std::runtime_error(file.string() + ": no such file; correct the path");
    if (!fs::is_regular_file(file)) throw std::runtime_error(file.string() + ": expected a file, found none");
    if (fs::file_size(file) > static_cast<std::uintmax_t>(kMaxBytes))
        throw std::runtime_error("expected at most " + std::to_string(kMaxBytes) + " bytes, found " +
                                 std::to_string(fs::file_size(file)) + "; cut it into parts");
    std::ifstream stream(file, std::ios::binary);
    std::string data{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    if (!stream.good() && !stream.eof()) throw std::runtime_error(file.string() + ": can't be read");
    return data;
}

// The orientation in a JPEG's EXIF block, 1 where there is none.
int orientation(const std::string& data) {
    const auto at = [&](std::size_t i) { return i < data.size() ? static_cast<unsigned char>(data[i]) : 0u; };
    if (at(0) != 0xFF || at(1) != 0xD8) return 1;
    for (std::size_t i = 2; at(i) == 0xFF && at(i + 1) != 0xDA && i < data.size(); i += 2 + at(i + 2) * 256 + at(i + 3)) {
        if (at(i + 1) != 0xE1 || data.compare(i + 4, 4, "Exif") != 0) continue;
        const std::size_t base = i + 10;
        const bool little = at(base) == 'I';
        const auto word = [&](std::size_t p) { return little ? at(p) + at(p + 1) * 256 : at(p) * 256 + at(p + 1); };
        const auto directory = base + (little ? word(base + 4) : word(base + 6));
        for (unsigned entry = 0; entry < word(directory); ++entry)
            if (word(directory + 2 + entry * 12) == 0x0112) return static_cast<int>(word(directory + 10 + entry * 12));
    }
    return 1;
}

void check_sides(int width, int height) {
    const std::string found = std::to_string(width) + " x " + std::to_string(height);
    if (static_cast<long>(width) * height > kMaxPixels)
        throw std::runtime_error("expected at most " + std::to_string(kMaxPixels) + " pixels, found " + found +
                                 "; cut it into parts");
    if (std::min(width, height) < kSmallestSide || std::max(width, height) > kLargestSide)
        throw std::runtime_error("expected sides of " + std::to_string(kSmallestSide) + " to " +
                                 std::to_string(kLargestSide) + " pixels, found " + found +
                                 (std::min(width, height) < kSmallestSide ? "; enlarge it, or leave it out"
                                                                          : "; cut it into parts"));
}

// 16 bit grey: up to 65535, or 2^bits - 1.
Image deep(const stbi_uc* bytes, int length, const json& bits) {
    Image image;
    int channels = 0;
    std::unique_ptr<stbi_us, void (*)(void*)> found(
        stbi_load_16_from_memory(bytes, length, &image.width, &image.height, &channels, 1), stbi_image_free);
    if (!found) throw std::runtime_error(std::string("expected a readable image, found ") + stbi_failure_reason());
    const int top = bits.is_number_integer() ? (1 << bits.get<int>()) - 1 : 65535;
    const std::size_t count = static_cast<std::size_t>(image.width) * image.height;
    const int high = *std::max_element(found.get(), found.get() + count);
    if (high > top)
        throw std::runtime_error("expected values up to " + std::to_string(top) + " (image.bits " + bits.dump() +
                                 "), found " + std::to_string(high) + "; export a detector with image.bits for it");
    image.pixels.resize(count * 3);
    for (std::size_t i = 0; i < count * 3; ++i)
        image.pixels[i] = static_cast<float>(static_cast<double>(found.get()[i / 3]) / top);
    return image;
}

Image read(const fs::path& file, const json& bits) {
    const std::string data = content(file);
    const auto* bytes = reinterpret_cast<const stbi_uc*>(data.data());
    const int length = static_cast<int>(data.size());
    Image image;
    int channels = 0;
    if (!stbi_info_from_memory(bytes, length, &image.width, &image.height, &channels))
        throw std::runtime_error("expected a PNG or JPEG file, found none; save it as a PNG of 8 or 16 bit");
    check_sides(image.width, image.height);
    if (orientation(data) != 1)
        throw std::runtime_error("expected an upright picture, found EXIF orientation " +
                                 std::to_string(orientation(data)) + "; save it turned");
    const bool sixteen = stbi_is_16_bit_from_memory(bytes, length);
    if (sixteen && channels == 1) return deep(bytes, length, bits);
    if (sixteen && bits.is_number_integer() && bits.get<int>() != 16)
        throw std::runtime_error("expected grey for image.bits " + bits.dump() +
                                 ", found 16 bit colour; save it with 8 bits per channel, or as 16 bit grey");
    std::unique_ptr<stbi_uc, void (*)(void*)> found(
        stbi_load_from_memory(bytes, length, &image.width, &image.height, &channels, 4), stbi_image_free);
    if (!found) throw std::runtime_error(std::string("expected a readable image, found ") + stbi_failure_reason());
    const std::size_t count = static_cast<std::size_t>(image.width) * image.height;
    bool same = true;  // an alpha that is the same everywhere says nothing
    for (std::size_t i = 1; i < count; ++i) same = same && found.get()[4 * i + 3] == found.get()[3];
    image.pixels.resize(count * 3);
    for (std::size_t i = 0; i < count; ++i) {
        const stbi_uc* pixel = found.get() + 4 * i;
        for (int c = 0; c < 3; ++c) {
            const int on_white = same ? pixel[c] : (pixel[c] * pixel[3] + 255 * (255 - pixel[3]) + 127) / 255;
            image.pixels[3 * i + c] = static_cast<float>(on_white) / 255.0f;
        }
    }
    return image;
}

struct Taps {  // of one place of a resized axis
    std::int64_t first;
    std::vector<float> weights;
};

// A triangle as wide as the reduction, in float32 as in training.
std::vector<Taps> taps(int length, int size) {
    const float scale = static_cast<float>(length) / static_cast<float>(size), support = std::max(scale, 1.0f);
    std::vector<Taps> found(size);
    for (int i = 0; i < size; ++i) {
        const float centre = scale * (static_cast<float>(i) + 0.5f);
        const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(centre - support + 0.5f), 0);
        const auto last = std::min<std::int64_t>(static_cast<std::int64_t>(centre + support + 0.5f), length);
        found[i].first = first;
        float sum = 0;
        for (auto place = first; place < last; ++place) {
            const float away = (static_cast<float>(place) - centre + 0.5f) / support;
            found[i].weights.push_back(std::max(1.0f - std::abs(away), 0.0f));
            sum += found[i].weights.back();
        }
        for (float& weight : found[i].weights) weight /= sum;
    }
    return found;
}

Image resized(const Image& image, int height, int width) {
    if (image.height == height && image.width == width) return image;
    const auto across = taps(image.width, width), down = taps(image.height, height);
    std::vector<float> wide(static_cast<std::size_t>(image.height) * width * 3, 0.0f);
    for (int y = 0; y < image.height; ++y)
        for (int x = 0; x < width; ++x)
            for (std::size_t k = 0; k < across[x].weights.size(); ++k)
                for (int c = 0; c < 3; ++c)
                    wide[(static_cast<std::size_t>(y) * width + x) * 3 + c] +=
                        image.pixels[(static_cast<std::size_t>(y) * image.width + across[x].first + k) * 3 + c] *
                        across[x].weights[k];
    Image out{height, width, std::vector<float>(static_cast<std::size_t>(height) * width * 3, 0.0f)};
    const std::size_t row = static_cast<std::size_t>(width) * 3;
    for (int y = 0; y < height; ++y) {
        for (std::size_t k = 0; k < down[y].weights.size(); ++k)
            for (std::size_t i = 0; i < row; ++i)
                out.pixels[y * row + i] += wide[(down[y].first + k) * row + i] * down[y].weights[k];
        for (std::size_t i = 0; i < row; ++i) out.pixels[y * row + i] = std::clamp(out.pixels[y * row + i], 0.0f, 1.0f);
    }
    return out;
}

std::vector<int> starts(int length, int side, double overlap) {
    const int count = 1 + static_cast<int>(std::ceil((length - side) / (side * (1 - overlap)) - 1e-6));
    std::vector<int> found;
    for (int i = 0; i < count; ++i)
        found.push_back(count == 1 ? 0 : rounded(i * (static_cast<double>(length - side) / (count - 1))));
    return found;
}

struct Layout {
    int height = 0, width = 0;
    std::vector<View> views;
};

View view(const Layout& canvas, int top, int left, int side) {
    View found{top, left, std::max(-top, 0), std::max(-left, 0), 0, 0};
    found.rows = std::min(top + side, canvas.height) - std::max(top, 0);
    found.columns = std::min(left + side, canvas.width) - std::max(left, 0);
    return found;
}

Layout layout(int height, int width, const json& settings) {
    const int side = settings.at("size");
    std::string aspect = settings.at("aspect");
    if (aspect == "auto") {
        const double ratio = static_cast<double>(width) / height;
        aspect = ratio >= 0.8 && ratio <= 1.25 ? "squash" : "letterbox";
    }
    Layout found{side, side, {}};
    if (aspect == "squash") {
        found.views.push_back(view(found, 0, 0, side));
    } else if (aspect == "letterbox") {
        const double scale = static_cast<double>(side) / std::max(height, width);
        found.height = std::max(1, rounded(height * scale));
        found.width = std::max(1, rounded(width * scale));
        found.views.push_back(view(found, -((side - found.height) / 2), -((side - found.width) / 2), side));
    } else if (aspect == "tile") {
        const double overlap = settings.at("overlap"), shorter = std::min(height, width);
        const double wanted = std::floor(side * (1 + (settings.at("tiles").get<int>() - 1) * (1 - overlap)) + 1e-6);
        const double scale = std::max<double>(side, std::min(wanted, shorter)) / shorter;
        found.height = std::max(side, rounded(height * scale));
        found.width = std::max(side, rounded(width * scale));
        for (const int top : starts(found.height, side, overlap))
            for (const int left : starts(found.width, side, overlap))
                found.views.push_back(view(found, top, left, side));
    } else {
        throw std::runtime_error("card.json: expected an aspect of auto, squash, letterbox or tile, found " + aspect);
    }
    return found;
}

// 3 x S x S; padding repeats the border.
std::vector<float> pixels_of(const Image& canvas, const View& view, int side) {
    std::vector<float> found(static_cast<std::size_t>(3) * side * side);
    for (int y = 0; y < side; ++y)
        for (int x = 0; x < side; ++x) {
            const int row = std::clamp(view.top + y, 0, canvas.height - 1);
            const int column = std::clamp(view.left + x, 0, canvas.width - 1);
            for (int c = 0; c < 3; ++c)
                found[(static_cast<std::size_t>(c) * side + y) * side + x] =
                    canvas.pixels[(static_cast<std::size_t>(row) * canvas.width + column) * 3 + c];
        }
    return found;
}

// Where each row (or column) of the image begins on the canvas.
std::vector<std::int64_t> begins(std::int64_t canvas, std::int64_t image) {
    std::vector<std::int64_t> found(image);
    for (std::int64_t i = 0; i < image; ++i) found[i] = i * canvas / image;
    return found;
}

// Begin and length in the image of the canvas rows low ... high.
std::pair<std::int64_t, std::int64_t> in_image(const std::vector<std::int64_t>& starts, int low, int high) {
    const auto owner = *(std::upper_bound(starts.begin(), starts.end(), low) - 1);
    const auto begin = std::lower_bound(starts.begin(), starts.end(), owner) - starts.begin();
    return {begin, std::lower_bound(starts.begin(), starts.end(), high + 1) - starts.begin() - begin};
}

struct Region {
    int top, bottom, left, right;
    std::int64_t count;
    float peak;
};

// Connected through all 8 neighbours.
std::vector<Region> regions(const Map& map, float threshold) {
    std::vector<char> open(map.values.size());
    for (std::size_t i = 0; i < open.size(); ++i) open[i] = map.values[i] > threshold;
    std::vector<Region> found;
    std::vector<int> left;
    for (int start = 0; start < static_cast<int>(open.size()); ++start) {
        if (!open[start]) continue;
        Region region{map.height, -1, map.width, -1, 0, -std::numeric_limits<float>::infinity()};
        open[start] = 0;
        left.assign(1, start);
        while (!left.empty()) {
            const int place = left.back(), y = place / map.width, x = place % map.width;
            left.pop_back();
            region.top = std::min(region.top, y), region.bottom = std::max(region.bottom, y);
            region.left = std::min(region.left, x), region.right = std::max(region.right, x);
            region.peak = std::max(region.peak, map.values[place]);
            ++region.count;
            for (int ny = std::max(y - 1, 0); ny <= std::min(y + 1, map.height - 1); ++ny)
                for (int nx = std::max(x - 1, 0); nx <= std::min(x + 1, map.width - 1); ++nx)
                    if (open[ny * map.width + nx]) {
                        open[ny * map.width + nx] = 0;
                        left.push_back(ny * map.width + nx);
                    }
        }
        found.push_back(region);
    }
    return found;
}

void add_marks(json& line, const Map& map, const json& threshold, int height, int width) {
    line["pixel_threshold"] = threshold;
    for (const char* name : {"marked_area", "region_count", "regions"}) line[name] = nullptr;
    if (threshold.is_null()) return;
    const auto found = regions(map, threshold.get<float>());
    const double all = static_cast<double>(map.values.size());
    const auto rows = begins(map.height, height), columns = begins(map.width, width);
    std::vector<std::pair<std::array<double, 3>, json>> listed;
    std::int64_t marked = 0;
    for (const Region& region : found) {
        marked += region.count;
        const auto [top, high] = in_image(rows, region.top, region.bottom);
        const auto [left, wide] = in_image(columns, region.left, region.right);
        const double share = region.count / all;
        listed.push_back({{-region.peak, static_cast<double>(top), static_cast<double>(left)},
                          json{{"x", left}, {"y", top}, {"width", wide}, {"height", high},
                               {"area", std::max(1.0, std::nearbyint(share * height * width))},
                               {"share", short_number(share)}, {"peak", short_number(region.peak)}}});
        listed.back().second["area"] = static_cast<std::int64_t>(listed.back().second["area"].get<double>());
    }
    std::stable_sort(listed.begin(), listed.end(), [](auto& a, auto& b) { return a.first < b.first; });
    line["marked_area"] = short_number(marked / all);
    line["region_count"] = found.size();
    line["regions"] = json::array();
    for (std::size_t i = 0; i < std::min(kListed, listed.size()); ++i) line["regions"].push_back(listed[i].second);
}

class Detector {
  public:
    Detector(const fs::path& folder, int threads) : env_(ORT_LOGGING_LEVEL_WARNING, "pvqae") {
        card_ = json::parse(content(folder / "card.json"));
        const std::string format = card_.value("format", "onnx");
        if (format != "onnx")
            throw std::runtime_error((folder / "card.json").string() + ": expected format onnx, found " + format +
                                     "; export the detector with --format onnx");
        if (!card_.at("threshold").is_number())
            throw std::runtime_error((folder / "card.json").string() + ": expected a threshold, found none");
        const std::string graph = content(folder / "model.onnx");
        Ort::SessionOptions options;
        options.SetIntraOpNumThreads(threads);  // 0: one per core
        session_ = std::make_unique<Ort::Session>(env_, graph.data(), graph.size(), options);
        for (const char* part : kParts)
            if (card_.at("outputs").contains(part)) parts_.push_back(part);
        names_ = {"image_score", "anomaly_map", "valid_cells"};
        for (const auto& part : parts_) names_.push_back(part), names_.push_back(part + "_cells");
    }

    const json& card() const { return card_; }

    json score(const fs::path& file, Map& map) {
        const json& settings = card_.at("preprocessing");
        const Image image = read(file, settings.value("bits", json("auto")));
        const Layout canvas = layout(image.height, image.width, settings);
        const Image small = resized(image, canvas.height, canvas.width);
        const int side = settings.at("size");
        map = {canvas.height, canvas.width, {}};
        total_.assign(static_cast<std::size_t>(map.height) * map.width, 0.0);
        weight_ = total_;
        cells_.clear();
        json parts;
        double score = 0;
        for (const View& view : canvas.views) {
            auto found = graph(pixels_of(small, view, side), view, side);
            add(found.at("anomaly_map"), view, side, map.width);
            score = *found.at("image_score").GetTensorData<float>();
            for (const auto& part : parts_) {
                parts[part] = static_cast<double>(*found.at(part).GetTensorData<float>());
                keep(part, found.at(part + "_cells"), found.at("valid_cells"));
            }
        }
        if (canvas.views.size() > 1) {  // the graph judged each view alone
            for (const auto& part : parts_) parts[part] = pooled(part, canvas.views.size());
            score = fused(parts);
        }
        for (std::size_t i = 0; i < total_.size(); ++i)
            map.values.push_back(static_cast<float>(total_[i] / weight_[i]));
        if (!std::isfinite(score)) throw std::runtime_error("a score is not finite; calibrate this class again");
        const double threshold = card_.at("threshold");
        json line{{"image", file.generic_string()}, {"score", score}, {"threshold", threshold},
                  {"margin", score - threshold}, {"decision", score > threshold ? "defect" : "normal"},
                  {"precision", card_.value("precision", "float32")}, {"parts", parts}};
        add_marks(line, map, card_.value("pixel_threshold", json(nullptr)), image.height, image.width);
        return line;
    }

  private:
    std::map<std::string, Ort::Value> graph(std::vector<float> pixels, const View& view, int side) {
        const std::size_t area = static_cast<std::size_t>(side) * side;
        std::unique_ptr<bool[]> valid(new bool[area]());
        for (int y = 0; y < view.rows; ++y)
            std::fill_n(valid.get() + (view.first_row + y) * side + view.first_column, view.columns, true);
        const std::array<std::int64_t, 4> shape{1, 3, side, side};
        const std::array<std::int64_t, 3> flat{1, side, side};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        std::array<Ort::Value, 2> inputs{
            Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape.data(), shape.size()),
            Ort::Value::CreateTensor<bool>(memory, valid.get(), area, flat.data(), flat.size())};
        const std::array<const char*, 2> asked{"pixels", "valid"};
        std::vector<const char*> names;
        for (const auto& name : names_) names.push_back(name.c_str());
        auto outputs = session_->Run(Ort::RunOptions{nullptr}, asked.data(), inputs.data(), inputs.size(), names.data(),
                                     names.size());
        std::map<std::string, Ort::Value> found;
        for (std::size_t i = 0; i < names_.size(); ++i) found.emplace(names_[i], std::move(outputs[i]));
        return found;
    }

    // Overlaps are averaged with weights that fall to a view's border.
    void add(const Ort::Value& map, const View& view, int side, int width) {
        const float* values = map.GetTensorData<float>();
        const auto ramp = [&](int i) { return static_cast<double>(std::min(i + 1, side - i)) / side; };
        for (int y = view.first_row; y < view.first_row + view.rows; ++y)
            for (int x = view.first_column; x < view.first_column + view.columns; ++x) {
                const std::size_t place = static_cast<std::size_t>(view.top + y) * width + view.left + x;
                total_[place] += ramp(y) * ramp(x) * values[y * side + x];
                weight_[place] += ramp(y) * ramp(x);
            }
    }

    void keep(const std::string& part, const Ort::Value& cells, const Ort::Value& valid) {
        const std::size_t count = cells.GetTensorTypeAndShapeInfo().GetElementCount();
        for (std::size_t i = 0; i < count; ++i)
            if (valid.GetTensorData<bool>()[i]) cells_[part].push_back(cells.GetTensorData<float>()[i]);
    }

    // The image score of a part over the cells of all views.
    double pooled(const std::string& part, std::size_t views) {
        auto& cells = cells_.at(part);
        const json& rule = card_.at("image_score");
        const auto count = std::max(1, rounded(rule.at("top").get<double>() * cells.size() / views));
        std::sort(cells.begin(), cells.end());
        const double mean = std::accumulate(cells.end() - count, cells.end(), 0.0) / count;
        const json scale = rule.at("scales").value(part, json{0.0, 1.0});
        return (mean - scale[0].get<double>()) / scale[1].get<double>();
    }

    double fused(const json& parts) const {
        const std::string fusion = card_.at("image_score").at("fusion");
        const auto part = [&](const std::string& name) { return parts.at(name).get<double>(); };
        if (fusion == "gated") return part("s_recon") + 0.25 * std::max(0.0, part("s_prior"));
        return part(fusion == "product" ? fusion : "s_" + fusion);
    }

    Ort::Env env_;
    std::unique_ptr<Ort::Session> session_;
    json card_;
    std::vector<std::string> parts_, names_;
    std::vector<double> total_, weight_;
    std::map<std::string, std::vector<float>> cells_;
};

// Grey, 8 bit, on the card's scale: 0 is the middle of good parts, 255 half above the highest that they reach.
void write_map(const Map& map, const json& scale, const fs::path& file) {
    const double low = scale.at(0), high = scale.at(1);
    std::vector<unsigned char> grey(map.values.size());
    for (std::size_t i = 0; i < grey.size(); ++i)
        grey[i] = static_cast<unsigned char>(rounded(255 * std::clamp((map.values[i] - low) / (high - low), 0.0, 1.0)));
    if (!stbi_write_png(file.string().c_str(), map.width, map.height, 1, grey.data(), map.width))
        throw std::runtime_error(file.string() + ": can't be written");
}

bool is_image(const fs::path& file) {
    std::string suffix = file.extension().string();
    std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
    return (suffix == ".png" || suffix == ".jpg" || suffix == ".jpeg") && file.filename().string()[0] != '.';
}

// Files as they are named, and the images in folders with all below them, sorted; links in folders are left out.
std::vector<fs::path> listed(const std::vector<std::string>& places) {
    std::vector<fs::path> found;
    for (const fs::path place : places) {
        if (!fs::is_directory(place)) {
            found.push_back(place);
            continue;
        }
        std::vector<fs::path> below;
        for (const auto& entry : fs::recursive_directory_iterator(place))
            if (!entry.is_symlink() && entry.is_regular_file() && is_image(entry.path())) below.push_back(entry.path());
        std::sort(below.begin(), below.end());
        found.insert(found.end(), below.begin(), below.end());
    }
    return found;
}

struct Options {
    fs::path folder, maps;
    std::vector<std::string> places;
    int threads = 0;
};

Options options(int count, char** words) {
    Options found;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        if ((word == "--maps" || word == "--threads") && i + 1 < count) {
            const std::string value = words[++i];
            if (word == "--maps")
                found.maps = value;
            else if ((found.threads = std::atoi(value.c_str())) < 1)
                throw std::invalid_argument("--threads: expected a number from 1, found " + value);
        } else if (word.rfind("--", 0) == 0) {
            throw std::invalid_argument(word + ": no such option, or its value is missing");
        } else if (found.folder.empty()) {
            found.folder = word;
        } else {
            found.places.push_back(word);
        }
    }
    if (found.places.empty()) throw std::invalid_argument("expected an exported folder and images");
    return found;
}

// A line per image; whether each got a score.
bool judge(Detector& detector, const Options& given) {
    if (!given.maps.empty()) fs::create_directories(given.maps);
    bool whole = true;
    std::size_t number = 0;
    for (const fs::path& file : listed(given.places)) {
        json line;
        const auto begun = std::chrono::steady_clock::now();
        try {
            Map map;
            line = detector.score(file, map);
            const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begun;
            line["milliseconds"] = std::nearbyint(took.count() * 100) / 100;
            if (!given.maps.empty())
                write_map(map, detector.card().at("map_scale"), given.maps / (std::to_string(number) + ".png"));
        } catch (const std::exception& error) {
            line = json{{"image", file.generic_string()}, {"error", error.what()}};
            whole = false;
        }
        ++number;
        std::cout << line.dump(-1, ' ', false, json::error_handler_t::replace) << std::endl;
    }
    return whole;
}

}  // namespace

int main(int count, char** words) {
    try {
        const Options given = options(count, words);
        Detector detector(given.folder, given.threads);
        return judge(detector, given) ? 0 : 1;
    } catch (const std::invalid_argument& error) {
        std::cerr << "error: " << error.what()
                  << "\nusage: pvqae_runner FOLDER IMAGES... [--maps FOLDER] [--threads N]\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
}

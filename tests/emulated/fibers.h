// Threads that take turns on one CPU, in an order drawn from a seed: whoever waits lets others run, and work that hardware does by itself (loads) happens in
// between.
#pragma once

#include <ucontext.h>

#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulated {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void require(bool condition, const std::string& otherwise) {
    if (!condition) throw Error(otherwise);
}

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int index = 0, crew = 0;  // crew: those of one warp are as fast as each other
    bool done = false;
    const char* waits_for = nullptr;
};

// Those who wait for one event.
using Waiters = std::vector<Fiber*>;

class Scheduler {
  public:
    std::mt19937 random;
    std::function<bool()> background;  // does one piece of the work that nobody waits on a turn for; false where there is none
    std::function<void(int)> enter;    // a fiber's turn begins

    explicit Scheduler(uint32_t seed) : random(seed), eagerness_(std::vector<double>{0, 0.003, 0.06, 0.5}[seed % 4]) {}

    bool chance(double probability) { return std::uniform_real_distribution<>()(random) < probability; }

    Fiber& current() { return *current_; }

    // Let others run, sometimes.
    void yield() {
        if (!chance(0.05)) return;
        ready_.push_back(current_);
        leave();
    }

    void wait(Waiters& waiters, const char* what) {
        current_->waits_for = what;
        waiters.push_back(current_);
        leave();
        current_->waits_for = nullptr;
    }

    void wake(Waiters& waiters) {
        ready_.insert(ready_.end(), waiters.begin(), waiters.end());
        waiters.clear();
    }

    // Runs body(0), ..., body(count - 1) to their ends.
    void run(int count, int crew_size, const std::function<void(int)>& body) {
        constexpr size_t kStack = 1 << 16;
        body_ = body;
        fibers_.resize(count);
        for (int i = 0; i < count; ++i) {
            Fiber& fiber = fibers_[i];
            fiber.index = i;
            fiber.crew = i / crew_size;
            fiber.stack.reset(new char[kStack]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = kStack;
            fiber.context.uc_link = &home_;
            const auto self = reinterpret_cast<uintptr_t>(this);
            makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Scheduler::begin), 2, static_cast<uint32_t>(self >> 32), static_cast<uint32_t>(self));
            ready_.push_back(&fiber);
        }
        speed_.resize(count / crew_size + 1);
        for (int turn = 0, left = count; left > 0; ++turn) {
            if (turn % 500 == 0) {
                for (auto& speed : speed_) speed = random();  // for a while some warps are far ahead of others
            }
            while (chance(eagerness_) && background()) {
            }
            while (ready_.empty()) {
                if (!background()) throw Error("deadlock: " + who_waits());
            }
            current_ = next();
            enter(current_->index);
            swapcontext(&home_, &current_->context);
            if (!error_.empty()) throw Error(error_);
            left -= current_->done;
        }
    }

  private:
    ucontext_t home_;
    std::vector<Fiber> fibers_;
    std::vector<Fiber*> ready_;
    std::vector<uint32_t> speed_;
    std::function<void(int)> body_;
    std::string error_;
    Fiber* current_ = nullptr;
    double eagerness_;  // of the background: a seed in four has it work only when everybody waits

    static void begin(uint32_t high, uint32_t low) {
        auto* const self = reinterpret_cast<Scheduler*>(static_cast<uintptr_t>(high) << 32 | low);
        try {
            self->body_(self->current_->index);
        } catch (const std::exception& error) {
            self->error_ = error.what();
        }
        self->current_->done = true;
    }

    void leave() {
        Fiber* const me = current_;
        swapcontext(&me->context, &home_);
    }

    Fiber* next() {
        size_t best = random() % ready_.size();
        for (int i = 0; i < 6; ++i) {
            const size_t other = random() % ready_.size();
            if (speed_[ready_[other]->crew] > speed_[ready_[best]->crew]) best = other;
        }
        std::swap(ready_[best], ready_.back());
        Fiber* const chosen = ready_.back();
        ready_.pop_back();
        return chosen;
    }

    std::string who_waits() {
        std::string words;
        for (size_t i = 0, crew = fibers_.size(); i < fibers_.size(); ++i) {
            const Fiber& fiber = fibers_[i];
            if (fiber.done || static_cast<size_t>(fiber.crew) == crew || words.size() > 1500) continue;
            crew = fiber.crew;
            words += (words.empty() ? "" : ", ") + ("warp " + std::to_string(crew)) + " waits for " + (fiber.waits_for ? fiber.waits_for : "its turn");
        }
        return words;
    }
};

}  // namespace emulated

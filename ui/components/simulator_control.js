// Simulated users with hidden tastes: start, change, stop, and the measured lift of recommendations.
// Emits start {shoppers, drift, hot}, change {drift, hot} and stop.

const percent = (x) => (100 * x).toFixed(2) + " %";

export default {
  template: `
    <form class="ac-control" data-testid="simulator" :data-state="running ? 'running' : 'stopped'" @submit.prevent="go">
      <p class="ac-control-line"><b>{{ running ? "Running" : "Not running" }}</b>
        <span v-if="figures.round">round {{ figures.round.toLocaleString("en") }}, {{ figures.feedback.toLocaleString("en") }} events sent</span></p>
      <div class="ac-control-fields">
        <label>Users <input type="number" min="2" max="2000" v-model.number="shoppers" :disabled="running" data-testid="simulator-shoppers"></label>
        <label>Taste drift <input type="number" min="0" max="1" step="0.05" v-model.number="drift" data-testid="simulator-drift"></label>
        <label class="wide">Trending item <input type="text" v-model.trim="hot" list="ac-hot" autocomplete="off" placeholder="item id" data-testid="simulator-hot">
          <datalist id="ac-hot"><option v-for="i in items" :key="i.item_id" :value="i.item_id">{{ i.title }}</option></datalist></label>
      </div>
      <div class="ac-control-buttons">
        <button v-if="!running" type="submit" class="ac-button" data-testid="simulator-start">Start</button>
        <button v-if="running" type="submit" class="ac-button" data-testid="simulator-change">Change drift and item</button>
        <button v-if="running" type="button" class="ac-button" data-testid="simulator-stop" @click="$emit('stop', {})">Stop</button>
      </div>
      <table v-if="figures.arms" class="ac-small-table" data-testid="simulator-figures">
        <thead><tr><th scope="col">Shown</th><th scope="col" class="num">items</th><th scope="col" class="num">clicks</th><th scope="col" class="num">CTR</th><th scope="col" class="num">expected</th></tr></thead>
        <tbody><tr v-for="(row, arm) in figures.arms" :key="arm"><th scope="row">{{ arm }}</th><td class="num">{{ row.shown.toLocaleString("en") }}</td>
          <td class="num">{{ row.clicks }}</td><td class="num">{{ percent(row.ctr) }}</td><td class="num">{{ percent(row.expected_ctr) }}</td></tr></tbody>
      </table>
      <p v-if="figures.arms" class="ac-control-line"><span>Lift in clicks: <b>{{ (figures.lift > 0 ? "+" : "") + (100 * figures.lift).toFixed(0) }} %</b></span>
        <span v-if="plan.hot && plan.hot.length">trending: {{ plan.hot.join(", ") }}</span></p>
      <p v-else-if="said && !running" class="ac-control-line">{{ said }}</p>
    </form>`,
  props: { running: Boolean, plan: Object, figures: Object, said: String, items: Array },
  data() {
    return { shoppers: 20, drift: 0, hot: "", percent };
  },
  methods: {
    go() {
      const hot = this.hot ? [this.hot] : [];
      if (this.running) this.$emit("change", { drift: this.drift || 0, hot });
      else this.$emit("start", { shoppers: this.shoppers || 20, drift: this.drift || 0, hot });
    },
  },
};
